//! A web service whose heavy work runs in a process pool, so that the server answers while work goes on, survives
//! work that crashes, stops work that nobody waits for, and sends away what it has no room for, with a 503. `POST
//! /hash` hashes the password in its body with argon2, as a `tower::Service` behind `load_shed` and a concurrency limit;
//! `GET /mine/{bits}` looks for a number whose SHA-256 begins with so many zero bits, for hours if you let it;
//! `GET /crash` writes where there is no memory; `GET /status` tells how the pool is.
//!
//! `cargo run --release --example axum_service -- [ADDRESS]`, then `curl -d secret localhost:3000/hash`, `curl
//! localhost:3000/crash`, `curl localhost:3000/mine/99` with Ctrl-C; a second Ctrl-C for the server does not wait for
//! what is being done.

#![expect(clippy::print_stdout, reason = "a program says where it listens")]

use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{Router, get, post};
use procession::signals::Interrupts;
use procession::{AsyncResult, Pool, TaskService};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::limit::ConcurrencyLimit;
use tower::load_shed::{LoadShed, error::Overloaded};
use tower::{BoxError, ServiceBuilder, ServiceExt};

// The tasks: plain functions, which run in worker processes.

fn hash(password: String) -> Result<String, String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    hash.map(|hash| hash.to_string())
        .map_err(|error| error.to_string())
}

fn mine(bits: u32) -> Option<u64> {
    let zeros = |nonce: &u64| {
        let digest = Sha256::digest(nonce.to_le_bytes());
        let zeros = digest.iter().take_while(|&&byte| byte == 0).count() * 8;
        zeros as u32 + digest.get(zeros / 8).map_or(0, |byte| byte.leading_zeros())
    };
    (0..u64::MAX).find(|nonce| zeros(nonce) >= bits)
}

fn crash(address: usize) {
    let pointer = std::ptr::without_provenance_mut::<u8>(address);
    #[expect(unsafe_code, reason = "the point of it: a real segmentation fault")]
    // SAFETY: there is none. A worker process is what makes this bearable.
    unsafe {
        pointer.write_volatile(1);
    }
}

// The routes. An error is a status and a text.

type Failure = (StatusCode, String);

/// The task as a service: one that is not ready, because the queue or the limit is full, sheds the request.
type Hash = LoadShed<ConcurrencyLimit<TaskService<String, Result<String, String>>>>;

async fn hash_route(State(service): State<Hash>, password: String) -> Result<String, Failure> {
    let hash = service.oneshot(password).await.map_err(|error: BoxError| {
        let status = if error.is::<Overloaded>() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        (status, error.to_string())
    })?;
    hash.map_err(|message| (StatusCode::BAD_REQUEST, message))
}

async fn mine_route(State(pool): State<Pool>, Path(bits): Path<u32>) -> Result<String, Failure> {
    let nonce = run(&pool, mine, bits).await?;
    nonce
        .map(|nonce| format!("{nonce}\n"))
        .ok_or((StatusCode::NOT_FOUND, "there is none".to_owned()))
}

async fn crash_route(State(pool): State<Pool>) -> Result<(), Failure> {
    run(&pool, crash, 8).await
}

async fn status_route(State(pool): State<Pool>) -> Json<Value> {
    let stats = pool.stats();
    let pids: Vec<Option<u32>> = stats.workers.iter().map(|worker| worker.pid).collect();
    Json(json!({
        "queued": stats.queued,
        "in_flight": stats.in_flight,
        "done": stats.tasks_done,
        "restarts": stats.restarts,
        "pids": pids,
    }))
}

/// Runs a task for a request: at once or not at all, and only as long as the client waits for it.
async fn run<F, A, R>(pool: &Pool, function: F, argument: A) -> Result<R, Failure>
where
    F: Fn(A) -> R + Copy + 'static,
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned + 'static,
{
    let task = pool
        .try_apply(function, argument)
        .map_err(|refused| (StatusCode::SERVICE_UNAVAILABLE, refused.to_string()))?;
    let mut task = CancelOnDrop(task);
    let outcome = (&mut task.0).await;
    // The whole cause, for you to see. A public service would log it and tell its clients less.
    outcome.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// When a client disconnects, its handler is dropped, and this with it.
struct CancelOnDrop<R>(AsyncResult<R>);

impl<R> Drop for CancelOnDrop<R> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    // Two run, two wait, and whoever comes then is told so.
    let pool = Pool::builder().workers(2).queue_capacity(2).build().await?;
    // Of the four, hashes take three at most: some room is left for the others.
    let hash = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(3)
        .service(pool.service(hash));
    let routes = Router::new()
        .route("/hash", post(hash_route).with_state(hash))
        .route("/mine/{bits}", get(mine_route))
        .route("/crash", get(crash_route))
        .route("/status", get(status_route))
        .with_state(pool.clone());

    // The first Ctrl-C stops the server, and the pool when all requests have been answered, for which it may still be
    // needed. A second one ends the tasks that are at work; their clients are told.
    let interrupts = Interrupts::builder().terminate(&pool).listen()?;
    let first = interrupts.first();
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async {
            first.await;
            println!("draining");
        })
        .await?;

    // Workers end too, and are waited for.
    pool.close();
    pool.join().await?;
    println!("drained");
    Ok(())
}
