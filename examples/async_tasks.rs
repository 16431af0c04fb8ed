//! Async tasks: `async fn`s that run in a worker on a tokio runtime of its own, many at a time. Here twenty of them
//! share one worker and wait for each other, which they could not if they ran one by one; and one that waits for ever
//! is dropped, while the worker lives on.
//!
//! `cargo run --example async_tasks`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::future::pending;
use std::io;
use std::net::SocketAddr;

use procession::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Greets a server and gives its answer.
async fn ask((server, name): (SocketAddr, String)) -> Result<String, String> {
    let ask = async || -> io::Result<String> {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(name.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    ask().await.map_err(|error| error.to_string())
}

/// Connects, and waits for ever.
async fn wait(server: SocketAddr) {
    let _connection = TcpStream::connect(server).await;
    pending::<()>().await;
}

/// A server that answers nobody before all `n` have come.
async fn answer_together(listener: &TcpListener, n: usize) -> io::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..n {
        streams.push(listener.accept().await?.0);
    }
    for mut stream in streams {
        let mut name = String::new();
        stream.read_to_string(&mut name).await?;
        stream.write_all(format!("hello {name}").as_bytes()).await?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(1).tasks_per_worker(20).build().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;

    let names = (1..=20).map(|n| (address, format!("task {n}")));
    let answers = async {
        pool.asynchronous()
            .map(ask, names)
            .await
            .map_err(io::Error::other)
    };
    let (answers, ()) = tokio::try_join!(answers, answer_together(&listener, 20))?;
    println!("{:?} to {:?}", answers[0], answers[19]);

    // A task that is cancelled is dropped where it waits: with many in a worker, that is no reason to kill it.
    let worker = pool.workers()[0].pid;
    let waiting = pool.asynchronous().apply_async(wait, address);
    let (mut connection, _) = listener.accept().await?;
    waiting.abort();
    println!(
        "its connection was closed: {}",
        connection.read(&mut [0]).await? == 0
    );
    println!(
        "cancelled: {}",
        waiting.await.is_err_and(|error| error.is_cancelled())
    );

    // Blocking functions run there too, one at a time.
    let double = pool.apply(|n: u64| 2 * n, 21).await?;
    println!(
        "{double}, in the same worker: {}",
        pool.workers()[0].pid == worker
    );

    pool.close();
    pool.join().await?;
    Ok(())
}
