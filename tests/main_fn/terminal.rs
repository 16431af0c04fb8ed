//! Ctrl-C, Ctrl-Z and the closing of the window, in a real terminal with a shell that has job control.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetpgrp;

use crate::fixture::{FUSE, Scratch, program};

crate::trials! {
    the_first_ctrl_c_lets_accepted_tasks_finish
    the_second_ctrl_c_ends_tasks
    the_third_ctrl_c_ends_the_program
    sigterm_drains_like_ctrl_c
    a_service_may_submit_after_the_first_ctrl_c
    ctrl_c_ends_a_program_that_asked_for_nothing
    ctrl_c_ends_a_program_that_listens_no_more
    what_is_started_to_ignore_ctrl_c_goes_on
    ctrl_z_stops_the_workers_and_fg_continues_them
    ctrl_z_stops_a_program_that_asked_for_nothing_alone
    a_stopped_program_can_be_killed_with_its_workers
    ctrl_c_after_fg_drains
    closing_the_window_ends_everything
    a_task_is_not_stopped_for_using_the_terminal
}

/// The tests of this module, where a program can be put into a terminal.
pub(crate) fn trials_if_possible() -> Vec<libtest_mimic::Trial> {
    let help = Command::new("setsid").arg("--help").output();
    if help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--ctty")) {
        return trials();
    }
    eprintln!("no test of terminals: there is no `setsid --ctty`, of util-linux");
    Vec::new()
}

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// A terminal, the shell in it, and what that runs in the foreground.
struct Terminal {
    scratch: Scratch,
    open: Option<Open>,
    lines: Receiver<String>,
    shell: Child,
    /// The program, then its workers.
    pids: Vec<u32>,
}

/// The terminal's outer side: a window, as it were.
struct Open {
    keyboard: File,
    reader: JoinHandle<()>,
    stop: OwnedFd,
}

/// Sends on what appears on the screen, by lines, until the terminal ends or `stopped` does.
fn read_lines(mut output: File, stopped: &OwnedFd, lines: &Sender<String>) {
    let mut text = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(stopped, PollFlags::IN),
            PollFd::new(&output, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        if !fds[0].revents().is_empty() {
            return;
        }
        let mut buffer = [0; 1024];
        // The end of a terminal is an error.
        let Ok(length) = output.read(&mut buffer) else {
            return;
        };
        text.extend_from_slice(&buffer[..length]);
        while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            // The test may have ended.
            lines
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .ok();
        }
    }
}

impl Terminal {
    /// Runs the program with so many tasks in the foreground of a shell. `script` has `$run` for that.
    fn start(mode: &str, tasks: usize, script: &str) -> Self {
        let scratch = Scratch::new();
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let screen = File::options()
            .read(true)
            .write(true)
            .open(OsStr::from_bytes(name.as_bytes()))
            .unwrap();
        let screen = || Stdio::from(screen.try_clone().unwrap());

        let mut run = format!("{} {mode}", program("terminal").display());
        for task in 0..tasks {
            let fifo = scratch.path(&task.to_string());
            mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            run.push_str(&format!(" {}", fifo.display()));
        }
        // What the terminal would write for itself is not the program's; and what the program writes when a key is
        // pressed must not be lost.
        let script = format!("stty -echo noflsh; {}", script.replace("$run", &run));
        let shell = Command::new("setsid")
            .args(["--ctty", "sh", "-mc", &script])
            .stdin(screen())
            .stdout(screen())
            .stderr(screen())
            .spawn()
            .unwrap();
        let keyboard = File::from(keyboard);
        let output = keyboard.try_clone().unwrap();
        let (sender, lines) = channel();
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let reader = thread::spawn(move || read_lines(output, &stopped, &sender));
        let mut terminal = Self {
            scratch,
            open: Some(Open {
                keyboard,
                reader,
                stop,
            }),
            lines,
            shell,
            pids: Vec::new(),
        };
        let pids = terminal.line();
        let pids = pids.strip_prefix("pids ").unwrap_or_else(|| panic!("{pids}"));
        terminal.pids = pids
            .trim_matches(['[', ']'])
            .split(", ")
            .map(|pid| pid.parse().unwrap())
            .collect();
        terminal.expect(&vec!["began"; tasks]);
        terminal
    }

    /// The next line that is not empty: some shells begin a new one after a signal.
    #[track_caller]
    fn line(&self) -> String {
        loop {
            let line = self.lines.recv_timeout(FUSE).unwrap();
            if !line.is_empty() {
                return line;
            }
        }
    }

    /// The next lines on the screen.
    #[track_caller]
    fn expect(&self, lines: &[&str]) {
        for &line in lines {
            assert_eq!(self.line(), line);
        }
    }

    fn press(&mut self, keys: &str) {
        let keyboard = &mut self.open.as_mut().unwrap().keyboard;
        keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Ends a task, whose result is then `length`.
    fn release(&self, task: usize, length: usize) {
        // Waits for the task, should it not have come so far.
        fs::write(self.scratch.path(&task.to_string()), vec![b'x'; length]).unwrap();
    }

    /// The last lines on the screen, and that nobody is left.
    #[track_caller]
    fn end(mut self, lines: &[&str]) {
        self.expect(lines);
        assert_eq!(self.lines.recv_timeout(FUSE), Err(RecvTimeoutError::Disconnected));
        self.shell.wait().unwrap();
        self.gone();
    }

    /// Closes the window.
    fn close(&mut self) {
        if let Some(Open {
            keyboard,
            reader,
            stop,
        }) = self.open.take()
        {
            drop(stop);
            reader.join().ok();
            drop(keyboard);
        }
    }

    #[track_caller]
    fn gone(&self) {
        for &pid in &self.pids {
            // Who adopts what is left of a dead shell may bury it late.
            eventually(&format!("{pid} is gone"), || {
                matches!(state(pid), None | Some('Z'))
            });
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Closing the terminal ends what a test that failed has left.
        self.close();
        self.shell.kill().ok();
        self.shell.wait().ok();
    }
}

/// The letter that says whether a process runs, sleeps or is stopped.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].chars().next()
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < FUSE, "not within {FUSE:?}: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// The shell says how the program ended, and survives its Ctrl-C.
const STATUS: &str = "trap : INT; $run; echo status $?";

fn the_first_ctrl_c_lets_accepted_tasks_finish() {
    let mut terminal = Terminal::start("drain", 2, STATUS);
    terminal.press(CTRL_C);
    terminal.expect(&["first SIGINT", "refused true"]);
    terminal.release(0, 5);
    terminal.release(1, 6);
    terminal.end(&["Ok(5)", "Ok(6)", "SIGINT all done: true", "status 130"]);
}

fn the_second_ctrl_c_ends_tasks() {
    let mut terminal = Terminal::start("drain", 2, STATUS);
    terminal.press(CTRL_C);
    terminal.expect(&["first SIGINT", "refused true"]);
    terminal.press(CTRL_C);
    terminal.end(&[
        "Err(PoolClosed)",
        "Err(PoolClosed)",
        "SIGINT all done: false",
        "status 130",
    ]);
}

fn the_third_ctrl_c_ends_the_program() {
    let mut terminal = Terminal::start("stubborn", 2, STATUS);
    for line in ["first SIGINT", "second SIGINT"] {
        terminal.press(CTRL_C);
        terminal.expect(&[line]);
    }
    terminal.press(CTRL_C);
    terminal.end(&["status 130"]);
}

fn sigterm_drains_like_ctrl_c() {
    let terminal = Terminal::start("drain", 2, STATUS);
    signal(terminal.pids[0], Signal::TERM);
    terminal.expect(&["first SIGTERM", "refused true"]);
    terminal.release(0, 5);
    terminal.expect(&["Ok(5)"]);
    signal(terminal.pids[0], Signal::INT);
    terminal.end(&["Err(PoolClosed)", "SIGTERM all done: false", "status 143"]);
}

fn a_service_may_submit_after_the_first_ctrl_c() {
    let mut terminal = Terminal::start("service", 2, STATUS);
    terminal.press(CTRL_C);
    terminal.expect(&["first SIGINT", "open true false"]);
    terminal.release(0, 5);
    terminal.release(1, 6);
    terminal.end(&["Ok(5)", "Ok(6)", "SIGINT all done: true", "status 130"]);
}

fn ctrl_c_ends_a_program_that_asked_for_nothing() {
    let mut terminal = Terminal::start("plain", 2, STATUS);
    terminal.press(CTRL_C);
    terminal.end(&["status 130"]);
}

fn ctrl_c_ends_a_program_that_listens_no_more() {
    let mut terminal = Terminal::start("dropped", 2, STATUS);
    terminal.press(CTRL_C);
    terminal.end(&["status 130"]);
}

fn what_is_started_to_ignore_ctrl_c_goes_on() {
    let mut terminal = Terminal::start("drain", 2, "trap '' INT; $run; echo status $?");
    terminal.press(CTRL_C);
    signal(terminal.pids[0], Signal::TERM);
    terminal.expect(&["first SIGTERM", "refused true"]);
    terminal.release(0, 5);
    terminal.release(1, 6);
    terminal.end(&["Ok(5)", "Ok(6)", "SIGTERM all done: true", "status 143"]);
}

/// When the program is stopped the shell says so, and goes on when a line is entered.
const SUSPENDED: &str = "trap : INT; $run; echo status $?; read line; fg; echo status $?";

/// 128 and the number of SIGTSTP.
const STOPPED: &str = "status 148";

/// Reads what the shell says when it stops the program, in its own words but for the end.
#[track_caller]
fn expect_stopped(terminal: &Terminal) {
    let said = std::iter::repeat_with(|| terminal.line()).take_while(|line| line != STOPPED);
    assert!(said.count() < 4);
}

/// Has the shell bring the program back, and reads how it calls it.
#[track_caller]
fn bring_back(terminal: &mut Terminal) {
    terminal.press("\n");
    let called = terminal.line();
    assert!(called.contains("terminal"), "{called}");
}

/// Waits until keys are for the program again.
#[track_caller]
fn expect_foreground(terminal: &Terminal) {
    let program = i32::try_from(terminal.pids[0]).unwrap();
    let keyboard = &terminal.open.as_ref().unwrap().keyboard;
    eventually("the program is in the foreground", || {
        tcgetpgrp(keyboard).is_ok_and(|group| group.as_raw_pid() == program)
    });
    for &pid in &terminal.pids {
        eventually(&format!("{pid} goes on"), || state(pid) != Some('T'));
    }
}

fn ctrl_z_stops_the_workers_and_fg_continues_them() {
    let twice = format!("{SUSPENDED}; read line; fg; echo status $?");
    let mut terminal = Terminal::start("suspend", 2, &twice);
    for _ in 0..2 {
        terminal.press(CTRL_Z);
        expect_stopped(&terminal);
        for &pid in &terminal.pids {
            eventually(&format!("{pid} is stopped"), || state(pid) == Some('T'));
        }
        bring_back(&mut terminal);
        expect_foreground(&terminal);
    }
    terminal.release(0, 5);
    terminal.release(1, 6);
    terminal.end(&["Ok(5)", "Ok(6)", "interrupted false", "status 0"]);
}

fn ctrl_z_stops_a_program_that_asked_for_nothing_alone() {
    let mut terminal = Terminal::start("plain", 2, SUSPENDED);
    terminal.press(CTRL_Z);
    expect_stopped(&terminal);
    assert_eq!(state(terminal.pids[0]), Some('T'));
    // Its workers go on, and what they have to say waits.
    terminal.release(0, 5);
    terminal.release(1, 6);
    bring_back(&mut terminal);
    terminal.end(&["Ok(5)", "Ok(6)", "status 0"]);
}

fn a_stopped_program_can_be_killed_with_its_workers() {
    let mut terminal = Terminal::start("suspend", 2, "$run; echo status $?; read line");
    terminal.press(CTRL_Z);
    expect_stopped(&terminal);
    signal(terminal.pids[0], Signal::KILL);
    terminal.press("\n");
    terminal.gone();
}

fn ctrl_c_after_fg_drains() {
    let mut terminal = Terminal::start("suspend", 2, SUSPENDED);
    terminal.press(CTRL_Z);
    expect_stopped(&terminal);
    bring_back(&mut terminal);
    expect_foreground(&terminal);
    terminal.press(CTRL_C);
    terminal.expect(&["first SIGINT"]);
    terminal.release(0, 5);
    terminal.release(1, 6);
    terminal.end(&["Ok(5)", "Ok(6)", "interrupted true", "status 0"]);
}

fn closing_the_window_ends_everything() {
    for mode in ["plain", "drain", "suspend"] {
        let mut terminal = Terminal::start(mode, 2, STATUS);
        terminal.close();
        terminal.gone();
    }
}

fn a_task_is_not_stopped_for_using_the_terminal() {
    let terminal = Terminal::start("use", 0, "stty tostop; $run; echo status $?");
    // End of file; EIO.
    terminal.end(&["written", "(0, Some(5), true)", "status 0"]);
}
