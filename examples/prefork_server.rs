//! A server of the old school: the parent binds the socket, processes accept from it, and one that dies takes down
//! nothing but the request that it was at. The parent replaces it.
//!
//! `cargo run --example prefork_server` serves itself some requests, kills a process under load, and counts.
//! `cargo run --example prefork_server -- 127.0.0.1:8000` serves whoever comes, until Ctrl-C.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use procession::{BuildError, Fd, Process, ProcessBuilder, StartMethod, wait_any};
use tokio::sync::oneshot;

const PROCESSES: usize = 3;
const CLIENTS: usize = 8;
const REQUESTS: usize = 400;

fn main() -> Result<(), Box<dyn Error>> {
    procession::init();
    let address = std::env::args().nth(1);
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0"))?;
        let server = Server::new(listener.into());
        match address {
            Some(_) => {
                println!("listening on http://{}", server.address()?);
                tokio::select! {
                    served = server.run(|_| {}) => served,
                    signal = tokio::signal::ctrl_c() => Ok(signal?),
                }
            }
            None => demonstrate(server).await,
        }
    })
}

/// The parent's side: so many processes, whatever becomes of each.
struct Server {
    /// Copies of a template start in no time.
    builder: ProcessBuilder,
    listener: Fd,
}

impl Server {
    fn new(listener: Fd) -> Self {
        let builder = Process::builder()
            .daemon(true)
            .start_method(StartMethod::ForkServer);
        Self { builder, listener }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        TcpListener::from(self.listener.try_clone()?.into_inner()).local_addr()
    }

    /// Keeps the processes running, and tells `started` their numbers.
    async fn run(&self, mut started: impl FnMut(u32)) -> Result<(), Box<dyn Error>> {
        let mut processes = Vec::new();
        loop {
            while processes.len() < PROCESSES {
                let process = match self.builder.spawn(serve, self.listener.try_clone()?).await {
                    // What copies were made of may be killed as well. The next start makes another.
                    Err(error) if matches!(error.start_error(), Some(BuildError::TemplateLost { .. })) => {
                        eprintln!("the template is replaced: {error}");
                        continue;
                    }
                    process => process?,
                };
                started(process.pid());
                processes.push(process);
            }
            for index in wait_any(&processes).await?.into_iter().rev() {
                let error = processes.remove(index).join().await.err();
                eprintln!(
                    "a process is replaced: {}",
                    error.map_or("it returned".into(), |error| error.to_string())
                );
            }
        }
    }
}

/// A process: one connection after the other.
fn serve(listener: Fd) {
    let listener = TcpListener::from(listener.into_inner());
    for connection in listener.incoming() {
        // A client that hangs up is its own business.
        connection.and_then(|connection| answer(&connection)).ok();
    }
}

fn answer(mut connection: &TcpStream) -> io::Result<()> {
    let mut requested = String::new();
    BufReader::new(connection).read_line(&mut requested)?;
    let path = requested.split(' ').nth(1).unwrap_or("/");
    let body = format!("{path} from {}\n", std::process::id());
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Serves itself, and has one of the processes killed when half of the requests have been made.
async fn demonstrate(server: Server) -> Result<(), Box<dyn Error>> {
    let address = server.address()?;
    let (first, victim) = oneshot::channel();
    let mut first = Some(first);
    let serving = server.run(move |pid| {
        if let Some(first) = first.take() {
            first.send(pid).ok();
        }
    });
    tokio::select! {
        served = serving => served,
        report = tokio::spawn(load(address, victim)) => Ok(report??),
    }
}

/// Makes requests, some at a time.
async fn load(address: SocketAddr, victim: oneshot::Receiver<u32>) -> io::Result<()> {
    let victim = victim.await.map_err(io::Error::other)?;
    let numbers = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let numbers = Arc::clone(&numbers);
            tokio::task::spawn_blocking(move || client(address, &numbers, victim))
        })
        .collect();
    let mut servers = Vec::new();
    for client in clients {
        servers.extend(client.await?);
    }
    let lost = REQUESTS - servers.len();
    servers.sort_unstable();
    servers.dedup();
    println!(
        "{REQUESTS} requests, answered by several processes: {}",
        servers.len() > 1
    );
    println!(
        "lost at most the one that was in the process that was killed: {}",
        lost <= 1
    );
    Ok(())
}

/// One request after the other, and who answered those that were.
fn client(address: SocketAddr, numbers: &AtomicUsize, victim: u32) -> Vec<u32> {
    let mut servers = Vec::new();
    loop {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        if number >= REQUESTS {
            return servers;
        }
        if number == REQUESTS / 2 {
            kill(victim);
        }
        servers.extend(request(address, number).ok().flatten());
    }
}

fn request(address: SocketAddr, number: usize) -> io::Result<Option<u32>> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "GET /{number} HTTP/1.1\r\n\r\n")?;
    let mut said = String::new();
    connection.read_to_string(&mut said)?;
    let answer = said.rsplit_once(&format!("/{number} from "));
    Ok(answer.and_then(|(_, server)| server.trim().parse().ok()))
}

/// What nobody can prepare for.
fn kill(pid: u32) {
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()), "nobody was killed");
}
