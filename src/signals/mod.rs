//! Ctrl-C and Ctrl-Z: what a terminal, or a supervisor of services, says to the program, passed on to its pools.
//!
//! Workers are in process groups of their own, so that a terminal's signals reach the program alone, and it decides.
//! A program that asks for nothing here is ended by Ctrl-C, and its workers with it; it is stopped by Ctrl-Z, and its
//! workers run on meanwhile.
//!
//! - [`Pool::drain_on_interrupt`](crate::Pool::drain_on_interrupt) finishes the accepted tasks on the first Ctrl-C or
//!   SIGTERM, and kills them on the second. [`Interrupts`] does so for several pools, and tells the program.
//! - [`job_control`] stops workers with the program on Ctrl-Z, and continues them with it.
//!
//! # Handlers
//!
//! Nothing is installed until one of these is called. The handlers are then those of tokio, for SIGINT and SIGTERM, or
//! for SIGTSTP; they are called beside others that were there before or come later through tokio or signal-hook, and
//! are never uninstalled. A signal that the program was started to ignore, as `nohup` and `&` do, stays ignored.
//!
//! No other signal is touched. SIGHUP, which comes when the terminal's window is closed, and SIGQUIT, which is Ctrl-\
//! on the keyboard, end the program at once, and its workers with it.
//!
//! # Examples
//!
//! ```
//! use procession::Pool;
//!
//! # fn simulate(seed: u64) -> u64 { seed }
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procession::init();
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         procession::signals::job_control()?;
//!         let pool = Pool::new().await?;
//!         let interrupts = pool.drain_on_interrupt()?;
//!         let results = pool.map(simulate, 0..100).collect_results().await;
//!         if let Some(interrupt) = interrupts.received() {
//!             eprintln!("{interrupt}: what had begun is done");
//!             std::process::exit(interrupt.exit_code().into());
//!         }
//! #       assert_eq!(results.len(), 100);
//!         Ok(())
//!     })
//! }
//! ```

mod interrupts;
mod job_control;

pub use self::interrupts::{Drained, Interrupt, Interrupts, InterruptsBuilder};
pub(crate) use self::job_control::suspended_between;
pub use self::job_control::{job_control, suspend};
