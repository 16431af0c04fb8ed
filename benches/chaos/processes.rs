//! Single processes that come and go: started by each method, ended in every way there is, while templates are killed.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use procession::{
    BuildError, Output, Process, ProcessBuilder, ProcessError, ProcessErrorKind, StartMethod, join_children,
};
use tokio::time::timeout;

use crate::Error;
use crate::load::Load;
use crate::random::Random;
use crate::staff::{MARK, mark};
use crate::templates::{self, Templates};

/// What is done with a process.
const WAYS: [&str; 9] = [
    "join",
    "join for a while",
    "drop",
    "kill",
    "terminate",
    "kill on drop",
    "dropped start",
    "crash",
    "large value",
];
const METHODS: [StartMethod; 2] = [StartMethod::Exec, StartMethod::ForkServer];

/// How often processes have come to what.
#[derive(Debug, Default)]
pub(crate) struct Lived(Mutex<BTreeMap<String, u64>>);

impl Lived {
    fn count(&self, what: impl Into<String>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn table(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parts: Vec<String> = counts
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        parts.join(", ")
    }
}

/// Task: so many milliseconds later, its number again.
fn linger((number, milliseconds): (u64, u64)) -> u64 {
    std::thread::park_timeout(Duration::from_millis(milliseconds));
    number
}

/// Task: ends in one of the ways that there are, which is also its exit code.
fn crash(way: u64) {
    match way {
        0 => panic!("crashed"),
        1 => std::process::abort(),
        #[expect(clippy::exit, reason = "that is how it ends")]
        _ => std::process::exit(way as i32),
    }
}

fn echo(bytes: Bytes) -> Bytes {
    bytes
}

fn builder(method: StartMethod, templates: &Templates) -> ProcessBuilder {
    let quiet = Process::builder().stdout(Output::null()).stderr(Output::null());
    let builder = quiet.start_method(method).env(MARK, mark());
    match method {
        StartMethod::ForkServer => builder.initializer(templates::enter, templates.path()),
        _ => builder,
    }
}

/// Has everything there that comes with the first processes and stays.
pub(crate) async fn warm_up(templates: &Templates) -> Result<(), Error> {
    for method in METHODS {
        builder(method, templates)
            .spawn(linger, (1, 0))
            .await?
            .join()
            .await?;
    }
    Ok(())
}

/// Starts and ends processes until the load is over.
pub(crate) async fn come_and_go(
    load: Arc<Load>,
    templates: Arc<Templates>,
    lived: Arc<Lived>,
    number: usize,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let mut builders = METHODS.map(|method| builder(method, &templates));
    while !load.is_over.load(Relaxed) {
        let index = random.within(0..2) as usize;
        if random.one_in(50) {
            // Its template ends with it.
            builders[index] = builder(METHODS[index], &templates);
        }
        if random.one_in(25) && templates.kill_one(&mut random) {
            lived.count("a template is killed");
        }
        let way = WAYS[random.within(0..WAYS.len() as u64) as usize];
        load.wait(number, format!("a process by {:?}, '{way}'", METHODS[index]));
        match live(&builders[index], way, &mut random).await {
            Ok(end) => lived.count(end),
            Err(Oddity::Error(error)) if is_for_a_template(&error) => lived.count("template lost"),
            Err(Oddity::Error(error)) => load
                .tally
                .mismatch(format!("a process, '{way}': {error}: {error:?}")),
            Err(Oddity::Value(text)) => load.tally.mismatch(format!("a process, '{way}': {text}")),
        }
        load.wait_over(number);
    }
    drop(builders);
    load.wait(number, "the end of all processes".to_owned());
    join_children().await;
    load.wait_over(number);
}

/// What must not be.
enum Oddity {
    Error(ProcessError),
    Value(String),
}

impl From<ProcessError> for Oddity {
    fn from(error: ProcessError) -> Self {
        Self::Error(error)
    }
}

/// One process, from its start to its end, and what it has come to.
async fn live(builder: &ProcessBuilder, way: &str, random: &mut Random) -> Result<String, Oddity> {
    let number = random.next();
    let lingers = (number, random.within(0..20));
    let endless = (number, 1 << 40);
    let moment = random.micros(0..20_000);
    let value = |value: u64| match value == number {
        true => Ok(format!("{way}: value")),
        false => Err(Oddity::Value(format!("{value} instead of {number}"))),
    };
    match way {
        "join" => value(builder.spawn(linger, lingers).await?.join().await?),
        "join for a while" => {
            let mut process = builder.spawn(linger, lingers).await?;
            loop {
                if let Some(joined) = process.join_timeout(random.micros(0..5000)).await? {
                    return value(joined);
                }
            }
        }
        "drop" => {
            drop(builder.spawn(linger, lingers).await?);
            Ok(way.to_owned())
        }
        "kill" | "terminate" => {
            let is_endless = random.one_in(2);
            let lingers = if is_endless { endless } else { lingers };
            let process = builder.spawn(linger, lingers).await?;
            pass(moment).await;
            let (sent, code) = match way {
                "kill" => (process.kill(), -9),
                _ => (process.terminate(), -15),
            };
            sent.map_err(|error| Oddity::Value(error.to_string()))?;
            match process.join().await {
                Ok(joined) if !is_endless => value(joined),
                Ok(_) => Err(Oddity::Value("it went on".to_owned())),
                Err(error) if error.exit_code() == Some(code) => Ok(format!("{way}: {code}")),
                Err(error) => Err(error.into()),
            }
        }
        "kill on drop" => {
            let process = builder.clone().kill_on_drop(true).spawn(linger, endless).await?;
            match timeout(moment, process.join()).await {
                Err(_) => Ok(way.to_owned()),
                Ok(ended) => Err(Oddity::Value(format!("it ended by itself: {ended:?}"))),
            }
        }
        "dropped start" => {
            if random.one_in(2) {
                drop(timeout(moment / 20, builder.spawn(linger, lingers)).await);
            } else {
                let builder = builder.clone().kill_on_drop(true);
                drop(timeout(moment / 20, builder.spawn(linger, endless)).await);
            }
            Ok(way.to_owned())
        }
        "crash" => {
            let code = random.within(0..4);
            let error = match builder.spawn(crash, code).await?.join().await {
                Ok(()) => return Err(Oddity::Value("it returned".to_owned())),
                Err(error) => error,
            };
            let expected = match code {
                0 => (ProcessErrorKind::Panicked, Some(101)),
                1 => (ProcessErrorKind::Exited, Some(-6)),
                _ => (ProcessErrorKind::Exited, Some(code as i32)),
            };
            match (error.kind(), error.exit_code()) == expected {
                true => Ok(way.to_owned()),
                false => Err(error.into()),
            }
        }
        _ => {
            let bytes = Bytes::from(vec![number as u8; random.within(1..8 << 20) as usize]);
            let echoed = builder.spawn(echo, bytes.clone()).await?.join().await?;
            match echoed == bytes {
                true => Ok(way.to_owned()),
                false => Err(Oddity::Value("another value came back".to_owned())),
            }
        }
    }
}

/// Whether a start has failed because its template was killed, running or about to.
fn is_for_a_template(error: &ProcessError) -> bool {
    match error.start_error() {
        Some(BuildError::TemplateLost { .. }) => true,
        Some(BuildError::Initializer {
            panic: None, message, ..
        }) => message.contains("signal: 9"),
        _ => false,
    }
}

async fn pass(time: Duration) {
    timeout(time, std::future::pending::<()>())
        .await
        .unwrap_or_default();
}
