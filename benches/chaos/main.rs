//! A soak: every kind of task in every way of running it, while workers are killed and stopped at random, and single
//! processes beside them, whose templates are killed: `cargo bench --bench chaos`.
//!
//! ```text
//! cargo bench --bench chaos                                     a minute
//! cargo bench --bench chaos -- --seconds 3600 --workers 24      an hour, with so many workers
//! cargo bench --bench chaos -- --seed 7                         the same mixture again, if not the same moments
//! cargo bench --bench chaos -- --kills 0                        no signals, for comparison
//! cargo bench -- --test, cargo test --benches                   a second that shows nothing but that it works
//! ```
//!
//! Every task is entered in the books when it is made and settled when it ends; a task that ends twice or never, with a
//! wrong value, in a way that it must not, or that is started more often than it may be, is a mismatch. So is what is
//! left behind at the end: descriptors, threads, processes, memory. With a mismatch the exit status is not 0.

#![expect(clippy::print_stdout, reason = "the counts are what this program is for")]

mod ends;
mod killer;
mod leaks;
mod load;
mod processes;
#[path = "../common/program.rs"]
mod program;
mod random;
mod site;
mod staff;
mod starts;
mod tally;
mod tasks;
mod templates;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use procession::Pool;
use rustix::process::{Resource, Rlimit, setrlimit};

use ends::Ended;
use killer::Sent;
use leaks::Held;
use load::Load;
use processes::Lived;
use site::Site;
use staff::Staff;
use tally::Tally;
use templates::Templates;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What may take this long, after the load or while it lasts, has been forgotten.
const FUSE: Duration = Duration::from_secs(30);
const FUSE_UNDER_LOAD: Duration = Duration::from_secs(90);
/// How much larger this process may be at the end than it was in the first tenth: what its allocator keeps.
const MOST_GROWTH: u64 = 64;
const MOST_WORKERS: usize = 64;

struct Request {
    seconds: u64,
    seed: u64,
    workers: usize,
    /// Signals for each second.
    kills: u64,
}

fn main() -> ExitCode {
    procession::init();
    program::exit("chaos", run())
}

fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    let request = parse(&arguments)?;
    // Thousands of workers crash here; what they held would fill a disk.
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(chaos(&request))
}

fn parse(arguments: &[String]) -> Result<Request, Error> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut request = Request {
        // `cargo bench` says `--bench`, `cargo test` nothing.
        seconds: if has("--test") || !has("--bench") { 1 } else { 60 },
        seed: since.as_nanos() as u64 % 1_000_000,
        workers: 16,
        kills: 30,
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, Error> {
            let number = arguments
                .next()
                .ok_or_else(|| format!("{argument} wants a number"))?;
            Ok(number.parse()?)
        };
        match argument.as_str() {
            "--bench" | "--test" => {}
            "--seconds" => request.seconds = number()?,
            "--seed" => request.seed = number()?,
            "--workers" => request.workers = number()? as usize,
            "--kills" => request.kills = number()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if request.seconds == 0 {
        return Err("--seconds wants at least one".into());
    }
    if !(site::LEAST_WORKERS..=MOST_WORKERS).contains(&request.workers) {
        return Err(format!("--workers wants {} to {MOST_WORKERS}", site::LEAST_WORKERS).into());
    }
    Ok(request)
}

/// `true` when the books are in order.
async fn chaos(request: &Request) -> Result<bool, Error> {
    let Request {
        seconds,
        seed,
        workers,
        kills,
    } = *request;
    println!("chaos: seed {seed}, {seconds} s, {workers} workers, some {kills} signals a second");
    let tally = Arc::new(Tally::new()?);
    let staff = Arc::new(Staff::default());
    let ended = Arc::new(Ended::default());
    let templates = Arc::new(Templates::new()?);
    let lived = Arc::new(Lived::default());
    warm_up(&staff, &tally).await?;
    processes::warm_up(&templates).await?;
    let before = settled().await;
    let (files, threads) = before.counts();
    println!(
        "chaos: {files} descriptors, {threads} threads, {} MiB before",
        leaks::resident()
    );

    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let load = Arc::new(Load::new(Arc::clone(&tally)));
    let sites = site::build_all(workers, &staff, &tally.starts.path(), &templates.path()).await?;
    let sites: Vec<Arc<Site>> = sites.into_iter().map(Arc::new).collect();
    let mut submitters = tokio::task::JoinSet::new();
    for site in &sites {
        for _ in 0..site.submitters {
            let number = submitters.len();
            let seed = seed.wrapping_mul(1000) + number as u64;
            submitters.spawn(Arc::clone(&load).submit(Arc::clone(site), number, seed));
        }
    }
    for _ in 0..2 {
        let number = submitters.len();
        let seed = seed.wrapping_mul(1000) + number as u64;
        let (load, staff, ended) = (Arc::clone(&load), Arc::clone(&staff), Arc::clone(&ended));
        submitters.spawn(ends::come_and_go(load, staff, ended, number, seed));
    }

    for _ in 0..2 {
        let number = submitters.len();
        let seed = seed.wrapping_mul(1000) + number as u64;
        let (load, templates, lived) = (Arc::clone(&load), Arc::clone(&templates), Arc::clone(&lived));
        submitters.spawn(processes::come_and_go(load, templates, lived, number, seed));
    }

    let sent = Arc::new(Sent::default());
    let no_more_kills = Arc::new(AtomicBool::new(false));
    let killer = {
        let pools: Vec<Pool> = sites.iter().map(|site| site.pool.clone()).collect();
        let (staff, sent, is_over) = (Arc::clone(&staff), Arc::clone(&sent), Arc::clone(&no_more_kills));
        let kill = move || {
            if kills > 0 {
                killer::kill(
                    &staff,
                    &pools,
                    &sent,
                    &is_over,
                    seed,
                    Duration::from_secs(1) / kills as u32,
                );
            }
        };
        std::thread::Builder::new()
            .name("killer".to_owned())
            .spawn(kill)?
    };

    let first = watch(&load, &sites, &staff, &sent, began, end).await;
    load.is_over.store(true, Relaxed);
    no_more_kills.store(true, Relaxed);
    let stuck = load.stuck(FUSE_UNDER_LOAD);
    while killer.is_finished().then_some(()).is_none() {
        tick(Duration::from_millis(20)).await;
    }
    if killer.join().is_err() {
        tally.mismatch("the killer panicked".to_owned());
    }

    let all = async {
        while let Some(submitter) = submitters.join_next().await {
            if let Err(error) = submitter {
                tally.mismatch(format!("a submitter panicked: {error}"));
            }
        }
        while tally.total_settled() < tally.total_entered() {
            tick(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(FUSE, all).await.is_err() || !stuck.is_empty() {
        tally.mismatch(format!(
            "{} of {} tasks have not ended; waits: {:?} {stuck:?}",
            tally.total_entered() - tally.total_settled(),
            tally.total_entered(),
            load.stuck(Duration::ZERO),
        ));
        for site in &sites {
            eprintln!("chaos: pool {}: {:#?}", site.name, site.pool.stats());
        }
    }
    drop(submitters);
    let elapsed = began.elapsed();
    let last = leaks::resident();
    let restarts: Vec<String> = sites
        .iter()
        .map(|site| format!("{} {}", site.name, site.pool.stats().restarts))
        .collect();
    end_all(sites, &tally).await;
    look_for_leaks(&before, first, last, &staff, &tally).await;
    tally.look_back_at_all();

    let settled = tally.total_settled();
    println!("\n{}\n", tally.table());
    println!(
        "{settled} tasks in {:.1} s, {:.0} a second, {} values",
        elapsed.as_secs_f64(),
        settled as f64 / elapsed.as_secs_f64(),
        tally.values()
    );
    println!("signals: {}", sent.table());
    println!("pools: {}", ended.table());
    println!("processes: {}", lived.table());
    println!(
        "workers: {} started, {} ended; restarts: {}",
        staff.started.load(Relaxed),
        staff.ended.load(Relaxed),
        restarts.join(", ")
    );
    println!(
        "callbacks: {} of {}; lines printed by workers: {}",
        tally.callbacks_run.load(Relaxed),
        tally.callbacks_wanted.load(Relaxed),
        staff.lines.load(Relaxed)
    );
    let mismatches = tally.mismatches();
    println!(
        "chaos: seed {seed}: {}",
        match mismatches {
            0 => "everything is accounted for".to_owned(),
            _ => format!("{mismatches} MISMATCHES"),
        }
    );
    Ok(mismatches == 0)
}

/// Has everything there that comes with the first pool and stays.
async fn warm_up(staff: &Arc<Staff>, tally: &Tally) -> Result<(), Error> {
    let builder = Pool::builder().workers(2);
    let pool = staff.watch(builder, &tally.starts.path()).build().await?;
    let (run, was_run) = std::sync::mpsc::channel();
    let call = pool
        .apply_async(|n: u64| n + 1, 1)
        .callback(move |_| run.send(()).unwrap_or_default());
    call.await?;
    was_run.recv()?;
    pool.map(|n: u64| n + 1, 0..1000).await?;
    pool.close();
    pool.join().await?;
    Ok(())
}

/// What is held once nothing more of it ends.
async fn settled() -> Held {
    // Threads that start workers wait ten seconds for more to do; they may be there at the end too.
    tick(Duration::from_millis(300)).await;
    Held::now()
}

async fn tick(time: Duration) {
    tokio::time::timeout(time, std::future::pending::<()>())
        .await
        .unwrap_or_default();
}

/// Tells how it goes until the end. Gives the size of this process in the first tenth.
async fn watch(
    load: &Load,
    sites: &[Arc<Site>],
    staff: &Staff,
    sent: &Sent,
    began: Instant,
    end: Instant,
) -> u64 {
    let mut first = 0;
    let mut told = began;
    let tenth = (end - began) / 10;
    while Instant::now() < end && load.stuck(FUSE_UNDER_LOAD).is_empty() {
        tick(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now()))).await;
        if began.elapsed() < tenth.max(Duration::from_millis(200)) {
            first = first.max(leaks::resident());
        }
        if told.elapsed() >= Duration::from_secs(10) {
            told = Instant::now();
            let (files, threads) = Held::now().counts();
            println!(
                "{:6.0} s: {} tasks, {} values, {} signals, {} workers, {} waiting, {files} descriptors, \
                 {threads} threads, {} MiB",
                began.elapsed().as_secs_f64(),
                load.tally.total_settled(),
                load.tally.values(),
                sent.total(),
                staff.len(),
                sites.iter().map(|site| site.pool.stats().queued).sum::<usize>(),
                leaks::resident(),
            );
        }
    }
    first
}

/// Each pool in another way.
async fn end_all(sites: Vec<Arc<Site>>, tally: &Tally) {
    for (index, site) in sites.into_iter().enumerate() {
        let name = site.name;
        let end = async {
            match index % 4 {
                0 => {
                    site.pool.close();
                    site.pool.join().await.is_ok()
                }
                1 => site.pool.shutdown(Duration::from_secs(5)).await,
                2 => {
                    site.pool.terminate();
                    site.pool.join().await.is_ok()
                }
                _ => true,
            }
        };
        match tokio::time::timeout(FUSE, end).await {
            Ok(true) => {}
            Ok(false) => tally.mismatch(format!("pool {name}, which had nothing to do, did not end well")),
            Err(_) => tally.mismatch(format!("pool {name} did not end")),
        }
        drop(site);
    }
}

async fn look_for_leaks(before: &Held, first: u64, last: u64, staff: &Staff, tally: &Tally) {
    let began = Instant::now();
    let mut left = left_behind(before, staff, tally);
    while !left.is_empty() && began.elapsed() < FUSE {
        tick(Duration::from_millis(100)).await;
        left = left_behind(before, staff, tally);
    }
    for text in left {
        tally.mismatch(text);
    }
    let (files, threads) = Held::now().counts();
    let now = leaks::resident();
    println!(
        "chaos: {files} descriptors, {threads} threads, {now} MiB after; {first} MiB at first, {last} at last"
    );
    if now > first + MOST_GROWTH {
        tally.mismatch(format!(
            "{now} MiB in memory, where {first} were in the first tenth"
        ));
    }
}

fn left_behind(before: &Held, staff: &Staff, tally: &Tally) -> Vec<String> {
    let mut left = Held::now().beyond(before);
    left.extend(
        leaks::processes()
            .into_iter()
            .map(|process| format!("process {process} is left")),
    );
    let (started, ended) = (staff.started.load(Relaxed), staff.ended.load(Relaxed));
    if started != ended || staff.len() > 0 {
        left.push(format!(
            "{started} workers started, {ended} ended, {} there",
            staff.len()
        ));
    }
    let (wanted, run) = (
        tally.callbacks_wanted.load(Relaxed),
        tally.callbacks_run.load(Relaxed),
    );
    if wanted != run {
        left.push(format!("{run} callbacks run of {wanted}"));
    }
    left
}
