//! Waiting for one of several.

use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::runtime;
use crate::shared::watched::watch;

/// Waits until one of several is readable, a process's end among them, and gives the indices of all that are, in order:
/// at least one. A [`Process`](crate::Process) is readable when it has ended, whatever becomes of its handle; sockets,
/// pipes and other descriptors as the system has it. What can always be read, a file for example, is ready at once.
///
/// For nothing at all it waits forever.
///
/// # Errors
///
/// What the system says, when it is out of file descriptors for example.
///
/// # Cancel safety
///
/// Cancel safe: nothing is read.
///
/// # Examples
///
/// ```
/// use procession::{Process, wait_any};
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let mut busy = Process::spawn(|_: ()| std::thread::park(), ()).await?;
/// let quick = Process::spawn(|_: ()| (), ()).await?;
/// assert_eq!(wait_any(&[&busy, &quick]).await?, [1]);
/// busy.kill()?;
/// busy.wait().await?;
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub async fn wait_any<T: AsFd>(sentinels: &[T]) -> io::Result<Vec<usize>> {
    if sentinels.is_empty() {
        return pending().await;
    }
    let set = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
    let mut always = false;
    for (index, sentinel) in sentinels.iter().enumerate() {
        match epoll::add(&set, sentinel, EventData::new_u64(index as u64), EventFlags::IN) {
            Ok(()) => {}
            // A file, say, for which nobody has to wait; or one that is there already.
            Err(Errno::PERM) => always = true,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if always {
        return ready(sentinels);
    }
    let set = {
        let _own = runtime::handle()?.enter();
        watch(&set, Interest::READABLE)?
    };
    loop {
        // Cleared before the look, so that what comes behind that is not missed.
        set.readable().await?.clear_ready();
        let ready = ready(sentinels)?;
        // Somebody else may have taken what there was to be read.
        if !ready.is_empty() {
            return Ok(ready);
        }
    }
}

/// The indices of those that are readable now.
fn ready<T: AsFd>(sentinels: &[T]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<_> = sentinels
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
    Ok(ready.map(|(index, _)| index).collect())
}
