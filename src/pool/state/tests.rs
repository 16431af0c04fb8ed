//! The state against a model of workers: random events in any order that the world can bring them in, and after each
//! of them the promises of the module.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something that happens. Numbers of workers and tasks are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody submits a task, and waits for room if there is none and `waits` is set.
    Submit {
        priority: i32,
        bytes: usize,
        waits: bool,
    },
    /// Somebody wants room for a task to come.
    Reserve,
    /// One of those takes what it was offered, submits its task, or gives up.
    Reserved(usize, Reserved),
    Cancel {
        task: usize,
        polite: bool,
    },
    /// The time of a task that runs is up. `settled`: it has ended for who submitted it, unless `again`: then it is
    /// tried once more. Otherwise it ends with its worker.
    TimeOut {
        worker: usize,
        settled: bool,
        again: bool,
    },
    /// A worker is up.
    Start(usize),
    /// A worker could not be started.
    FailToStart(usize),
    /// What was sent to a worker arrives there.
    Arrive(usize),
    /// A worker begins a task that has arrived.
    Begin(usize),
    /// A worker finishes a task that it runs, which took so many microseconds.
    Finish(usize, usize, u64),
    /// A worker hears what it was told beside its tasks.
    Hear(usize),
    /// The pool reads one message of a worker.
    Read(usize),
    /// A worker's process ends. Where `rest` is set, a task that it ran has more elements that others can run.
    Die {
        worker: usize,
        rest: bool,
    },
    /// A task that shall be stopped has stood at a worker for long.
    Unresponsive(usize),
    /// What a worker runs has turned out to be long.
    Rescue(usize),
    /// A worker is old, or large.
    Wear(usize),
    /// A worker has had nothing to do for long.
    Idle(usize),
    /// No worker can be started.
    GiveUp,
    Close,
    Terminate,
}

#[derive(Clone, Copy, Debug)]
enum Reserved {
    Claim,
    Submit,
    GiveUp,
    /// What it was offered is taken back, and it waits again.
    Forget,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // With short tasks alone, some wait although workers are idle.
    prop_oneof![1 => events_of(&[1, 2]), 3 => events_of(&[1, 60, 10_000])]
}

fn events_of(run_times: &'static [u64]) -> impl Strategy<Value = Vec<Event>> {
    let bytes = prop_oneof![9 => 0..1000_usize, 1 => WAITING_BYTES / 2..WAITING_BYTES * 2];
    let run_time = prop::sample::select(run_times);
    let event = prop_oneof![
        160 => (-1..2, bytes, any::<bool>())
            .prop_map(|(priority, bytes, waits)| Event::Submit { priority, bytes, waits }),
        20 => Just(Event::Reserve),
        40 => (any::<usize>(), prop::sample::select(&[
            Reserved::Claim, Reserved::Submit, Reserved::GiveUp, Reserved::Forget,
        ][..])).prop_map(|(index, reserved)| Event::Reserved(index, reserved)),
        40 => (any::<usize>(), any::<bool>()).prop_map(|(task, polite)| Event::Cancel { task, polite }),
        20 => (any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(worker, settled, again)| Event::TimeOut { worker, settled, again }),
        60 => any::<usize>().prop_map(Event::Start),
        5 => any::<usize>().prop_map(Event::FailToStart),
        80 => any::<usize>().prop_map(Event::Arrive),
        120 => any::<usize>().prop_map(Event::Begin),
        80 => (any::<usize>(), any::<usize>(), run_time).prop_map(|(w, t, time)| Event::Finish(w, t, time)),
        100 => any::<usize>().prop_map(Event::Hear),
        160 => any::<usize>().prop_map(Event::Read),
        20 => (any::<usize>(), prop::bool::weighted(0.3)).prop_map(|(worker, rest)| Event::Die { worker, rest }),
        20 => any::<usize>().prop_map(Event::Unresponsive),
        20 => any::<usize>().prop_map(Event::Rescue),
        8 => any::<usize>().prop_map(Event::Wear),
        8 => any::<usize>().prop_map(Event::Idle),
        1 => Just(Event::GiveUp),
        2 => Just(Event::Close),
        1 => Just(Event::Terminate),
    ];
    prop_oneof![3 => vec(event.clone(), 0..60), 1 => vec(event, 0..400)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the line of those who wait for room.
    Waits,
    Queued,
    /// Sent there and not answered.
    At(usize),
    Ended,
}

#[derive(Debug)]
struct Task {
    priority: i32,
    bytes: usize,
    place: Place,
}

/// What comes from a worker.
#[derive(Debug)]
enum Said {
    Answer(u64, Option<Duration>),
    Recalled(Vec<u64>),
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Starting,
    Runs,
    /// It was stopped or told to end: it takes no more tasks.
    Ends,
    Gone,
}

#[derive(Debug)]
struct Peer {
    process: Process,
    number: usize,
    stopped: bool,
    on_the_way: VecDeque<u64>,
    arrived: VecDeque<u64>,
    running: Vec<u64>,
    told: VecDeque<Action<u64>>,
    /// Tasks that are here or on their way and whose outcome is settled.
    settled: BTreeSet<u64>,
    /// Tasks that are here or on their way, shall end, and have not.
    stopping: BTreeSet<u64>,
    /// Words to tasks that are still on their way.
    aborted: BTreeSet<u64>,
    said: VecDeque<Said>,
    /// A recall was sent whose answer has not been read.
    recalling: bool,
    begun: u64,
}

impl Peer {
    fn new(number: usize) -> Self {
        Self {
            process: Process::Starting,
            number,
            stopped: false,
            on_the_way: VecDeque::new(),
            arrived: VecDeque::new(),
            running: Vec::new(),
            told: VecDeque::new(),
            settled: BTreeSet::new(),
            stopping: BTreeSet::new(),
            aborted: BTreeSet::new(),
            said: VecDeque::new(),
            recalling: false,
            begun: 0,
        }
    }

    fn answers(&mut self, id: u64, run_time: Option<Duration>) {
        self.running.retain(|&other| other != id);
        self.said.push_back(Said::Answer(id, run_time));
    }

    fn is_doomed(&self) -> bool {
        !self.settled.is_empty() || !self.stopping.is_empty()
    }
}

struct World {
    state: State<u64>,
    sizing: Sizing,
    phase: Phase,
    /// Who waits for room for a task to come, was offered some, or has it.
    reserving: BTreeMap<u64, bool>,
    kept: usize,
    tasks: BTreeMap<u64, Task>,
    peers: Vec<Peer>,
    /// How often, in the end, what workers are told may overtake the tasks on their way.
    overtaking: usize,
    /// A worker may be stopped whatever waits there.
    hard: bool,
}

impl World {
    fn new(sizing: Sizing, overtaking: usize) -> Self {
        let mut world = Self {
            state: State::new(sizing),
            sizing,
            phase: Phase::Open,
            reserving: BTreeMap::new(),
            kept: 0,
            tasks: BTreeMap::new(),
            peers: Vec::new(),
            overtaking,
            hard: false,
        };
        world.act();
        assert_eq!(world.peers.len(), sizing.least);
        world
    }

    fn task(&mut self, id: u64) -> &mut Task {
        self.tasks.get_mut(&id).unwrap()
    }

    /// Every task ends once.
    fn end(&mut self, id: u64) {
        let place = &mut self.task(id).place;
        assert_ne!(*place, Place::Ended, "task {id} ends twice");
        *place = Place::Ended;
    }

    fn queued(&self) -> impl Iterator<Item = u64> {
        let queued = self.tasks.iter().filter(|(_, task)| task.place == Place::Queued);
        queued.map(|(&id, _)| id)
    }

    /// What `worker` was sent and has not answered.
    fn at(&self, worker: usize) -> Vec<u64> {
        let at = self
            .tasks
            .iter()
            .filter(|(_, task)| task.place == Place::At(worker));
        let settled = self.peers[worker].settled.iter();
        at.map(|(&id, _)| id).chain(settled.copied()).collect()
    }

    fn waiting(&self, worker: usize) -> usize {
        self.at(worker).len().saturating_sub(self.sizing.lanes)
    }

    fn is_ready(&self, worker: usize) -> bool {
        self.state.worker_state(worker) == WorkerState::Ready
    }

    fn handle(&mut self, event: Event) {
        let worker = match event {
            Event::TimeOut { worker, .. }
            | Event::Start(worker)
            | Event::FailToStart(worker)
            | Event::Arrive(worker)
            | Event::Begin(worker)
            | Event::Finish(worker, ..)
            | Event::Hear(worker)
            | Event::Read(worker)
            | Event::Die { worker, .. }
            | Event::Unresponsive(worker)
            | Event::Rescue(worker)
            | Event::Wear(worker)
            | Event::Idle(worker) => match self.peers.len() {
                0 => return,
                workers => worker % workers,
            },
            _ => 0,
        };
        match event {
            Event::Submit {
                priority,
                bytes,
                waits,
            } => self.submit(priority, bytes, waits),
            Event::Reserve => self.reserve(),
            Event::Reserved(index, reserved) => self.reserved(index, reserved),
            Event::Cancel { task, polite } => {
                // Now and then one that has ended; mostly one that somebody may still want.
                let alive = |(_, other): &(&u64, &Task)| task % 8 == 0 || other.place != Place::Ended;
                let ids: Vec<u64> = self.tasks.iter().filter(alive).map(|(&id, _)| id).collect();
                if !ids.is_empty() {
                    self.cancel(ids[task / 8 % ids.len()], polite);
                }
            }
            Event::TimeOut { settled, again, .. } => self.time_out(worker, settled, again),
            Event::Start(_) => self.start(worker),
            Event::FailToStart(_) => {
                if self.peers[worker].process == Process::Starting {
                    self.peers[worker].process = Process::Gone;
                    self.state.gone(worker);
                }
            }
            Event::Arrive(_) => {
                let peer = &mut self.peers[worker];
                peer.arrived.extend(peer.on_the_way.pop_front());
            }
            Event::Begin(_) => self.begin(worker),
            Event::Finish(_, task, micros) => {
                let peer = &mut self.peers[worker];
                if !peer.running.is_empty() && !peer.stopped {
                    let id = peer.running[task % peer.running.len()];
                    peer.answers(id, Some(Duration::from_micros(micros)));
                }
            }
            Event::Hear(_) => self.hear(worker),
            Event::Read(_) => self.read(worker),
            Event::Die { rest, .. } => self.die(worker, rest),
            Event::Unresponsive(_) => {
                let peer = &self.peers[worker];
                if let Some(&id) = peer.settled.iter().chain(&peer.stopping).next() {
                    let started = peer.running.clone();
                    let is_wanted = |id| !peer.settled.contains(id) && !peer.stopping.contains(id);
                    let is_spared = !started.contains(&id) && started.iter().any(is_wanted);
                    let is_up = peer.process == Process::Runs;
                    self.hard = true;
                    let again = self.state.unresponsive(worker, id, |id| started.contains(&id));
                    assert_eq!(again, is_spared && is_up);
                    self.act();
                    self.hard = false;
                    assert!(!again || self.peers[worker].process == Process::Runs);
                }
            }
            Event::Rescue(_) => {
                if self.phase != Phase::Closed {
                    self.state.rescue(worker);
                }
            }
            Event::Wear(_) => {
                if self.peers[worker].process == Process::Runs {
                    self.state.worn(worker);
                }
            }
            Event::Idle(_) => {
                let size = self.state.size();
                let has_tasks = !self.at(worker).is_empty();
                let line = self.state.waiting_for_room() > 0;
                if self.peers[worker].process == Process::Runs && self.state.idle(worker) {
                    assert!(!has_tasks && self.phase == Phase::Open && size > self.sizing.least);
                    // Unless that was room for somebody.
                    assert!(line || self.state.size() == size - 1);
                }
            }
            Event::GiveUp => {
                // Only where nobody works is that ever done.
                if !self.state.has_live_worker() {
                    let queued: BTreeSet<u64> = self.queued().collect();
                    let given_up = self.state.give_up().into_iter();
                    let (given_up, in_line) = given_up.partition::<Vec<u64>, _>(|id| queued.contains(id));
                    assert_eq!(given_up.len(), queued.len());
                    queued.into_iter().for_each(|id| self.end(id));
                    self.refused(in_line);
                }
            }
            Event::Close => {
                self.state.close();
                if self.phase == Phase::Open {
                    self.phase = Phase::Closing;
                }
                self.refuse_waiting();
            }
            Event::Terminate => self.terminate(),
        }
        self.act();
        self.check();
    }

    /// Tasks and those who reserve have their ids from one counter.
    fn next_id(&self) -> u64 {
        self.state.next_id
    }

    fn submit(&mut self, priority: i32, bytes: usize, waits: bool) {
        let id = self.next_id();
        let before = self.state.occupancy();
        let to_grow = self.state.lanes_to_grow();
        let first = self.state.admission.first();
        let line = first.is_some_and(|(first, _)| first >= priority);
        let submitted = if waits {
            self.state.submit_or_wait(priority, 1, bytes, id)
        } else {
            self.state.submit(priority, 1, bytes, id).map(|id| (id, false))
        };
        match submitted {
            Ok((given, in_line)) => {
                assert_eq!(given, id);
                assert_eq!(self.phase, Phase::Open);
                assert!(!line || in_line, "task {id} overtakes those that wait");
                let place = if in_line { Place::Waits } else { Place::Queued };
                let task = Task {
                    priority,
                    bytes,
                    place,
                };
                self.tasks.insert(id, task);
                self.act();
                let after = self.state.occupancy();
                let Capacity { tasks, bytes: most } = self.sizing.capacity;
                if tasks.is_some_and(|tasks| before.waiting >= tasks) && to_grow == 0 {
                    assert!(
                        after.waiting <= before.waiting,
                        "task {id} waits beyond the capacity"
                    );
                }
                if let (Some(most), 0) = (most, to_grow) {
                    let most = most.max(before.bytes);
                    assert!(after.bytes <= most || after.waiting == 1, "{after:?}");
                }
            }
            Err(Refusal::Closed) => assert_ne!(self.phase, Phase::Open),
            Err(Refusal::Full(bound)) => {
                assert!(!waits && to_grow <= self.kept);
                let waiting = before.waiting + self.kept;
                match bound {
                    QueueBound::Tasks(tasks) => {
                        assert_eq!(Some(tasks), self.sizing.capacity.tasks);
                        assert!(waiting >= tasks);
                    }
                    QueueBound::Bytes(most) => {
                        assert_eq!(Some(most), self.sizing.capacity.bytes);
                        assert!(waiting > 0 && (line || before.bytes + bytes as u64 > most));
                    }
                }
            }
        }
    }

    fn reserve(&mut self) {
        match self.state.keep_room() {
            Ok(true) => self.kept += 1,
            Ok(false) => {
                let id = self.next_id();
                self.reserving.insert(id, false);
                assert_eq!(self.state.wait_for_room(0, id), id);
            }
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Closed);
                assert_ne!(self.phase, Phase::Open);
            }
        }
    }

    fn reserved(&mut self, index: usize, reserved: Reserved) {
        let offered: Vec<u64> = self.reserving.keys().copied().collect();
        let id = (!offered.is_empty()).then(|| offered[index % offered.len()]);
        // What is kept for somebody who has claimed it is in no list.
        let claimed = self.kept - self.reserving.values().filter(|&&offered| offered).count();
        match (reserved, id) {
            (Reserved::Claim, Some(id)) => {
                let is_offered = self.reserving[&id];
                assert_eq!(self.state.claim_room(id), is_offered);
                if is_offered {
                    self.reserving.remove(&id);
                }
            }
            (Reserved::Forget, Some(id)) if self.reserving[&id] => {
                self.kept -= 1;
                self.reserving.remove(&id);
                self.state.take_room_back(id);
                self.act();
                if self.phase == Phase::Open && !self.state.keep_room().unwrap() {
                    self.reserving.insert(id, false);
                    self.state.wait_for_room(id, id);
                    self.act();
                } else if self.phase == Phase::Open {
                    self.kept += 1;
                }
            }
            (Reserved::GiveUp, Some(id)) => {
                if self.reserving.remove(&id) == Some(true) {
                    self.kept -= 1;
                }
                self.state.renounce_room(id);
            }
            (Reserved::GiveUp, None) if claimed > 0 => {
                self.kept -= 1;
                self.state.release_room();
            }
            (Reserved::Submit, _) if claimed > 0 => {
                self.kept -= 1;
                let id = self.next_id();
                match self.state.submit_kept(0, 1, 1, id) {
                    Ok(given) => {
                        assert_eq!(given, id);
                        let task = Task {
                            priority: 0,
                            bytes: 1,
                            place: Place::Queued,
                        };
                        self.tasks.insert(id, task);
                    }
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Closed);
                        assert_ne!(self.phase, Phase::Open);
                    }
                }
            }
            _ => {}
        }
    }

    /// Who waits for room in a pool that takes nothing more is told so.
    fn refuse_waiting(&mut self) {
        let waiting = self.state.refuse_waiting();
        self.refused(waiting);
    }

    fn refused(&mut self, waiting: Vec<u64>) {
        for id in waiting {
            if self.reserving.remove(&id).is_none() {
                assert_eq!(self.tasks[&id].place, Place::Waits);
                self.end(id);
            }
        }
        assert!(self.tasks.values().all(|task| task.place != Place::Waits));
        assert!(self.reserving.values().all(|offered| *offered));
    }

    fn cancel(&mut self, id: u64, polite: bool) {
        let Task { priority, place, .. } = *self.task(id);
        let outcome = self.state.cancel(priority, id, polite);
        match place {
            Place::Waits | Place::Queued => {
                assert_eq!(outcome, Cancelled::Queued(id));
                self.end(id);
            }
            Place::At(worker) => {
                assert_eq!(outcome, Cancelled::InFlight(id));
                self.settle_at(worker, id);
                self.end(id);
            }
            Place::Ended => assert_eq!(outcome, Cancelled::Unknown),
        }
    }

    /// What comes of the task at `worker` is of no more interest.
    fn settle_at(&mut self, worker: usize, id: u64) {
        self.peers[worker].stopping.remove(&id);
        self.peers[worker].settled.insert(id);
    }

    fn time_out(&mut self, worker: usize, settled: bool, again: bool) {
        let peer = &self.peers[worker];
        let running = peer.running.iter().copied();
        let Some(id) = running
            .into_iter()
            .find(|id| !peer.settled.contains(id) && !peer.stopping.contains(id))
        else {
            return;
        };
        if self.phase == Phase::Closed || peer.process != Process::Runs {
            return;
        }
        let polite = false;
        let stopped = self.state.stop(worker, id, Stop::Yes { settled, polite });
        assert_eq!(stopped, Some(id));
        if !settled {
            self.peers[worker].stopping.insert(id);
            return;
        }
        self.settle_at(worker, id);
        if again {
            self.task(id).place = Place::Queued;
            let Task { priority, bytes, .. } = *self.task(id);
            self.state.resubmit(priority, id, 1, bytes, id);
        } else {
            self.end(id);
        }
    }

    fn start(&mut self, worker: usize) {
        if self.peers[worker].process != Process::Starting {
            return;
        }
        if self.phase != Phase::Closed && self.state.wants(worker) {
            self.peers[worker].process = Process::Runs;
            self.state.ready(worker);
        } else {
            self.peers[worker].process = Process::Gone;
            self.state.gone(worker);
        }
    }

    fn begin(&mut self, worker: usize) {
        let lanes = self.sizing.lanes;
        let peer = &mut self.peers[worker];
        if peer.stopped || peer.running.len() >= lanes {
            return;
        }
        if let Some(id) = peer.arrived.pop_front() {
            peer.running.push(id);
            peer.begun += 1;
            if let Some(limit) = self.sizing.tasks_per_life {
                assert!(peer.begun <= limit, "more tasks than a worker may run");
            }
            if peer.aborted.remove(&id) && lanes > 1 {
                peer.answers(id, None);
            }
        }
    }

    fn hear(&mut self, worker: usize) {
        let lanes = self.sizing.lanes;
        let peer = &mut self.peers[worker];
        if peer.stopped {
            return;
        }
        match peer.told.pop_front() {
            Some(Action::Recall { .. }) => {
                let given_back: Vec<u64> = peer.arrived.drain(..).collect();
                peer.aborted.retain(|id| !given_back.contains(id));
                peer.said.push_back(Said::Recalled(given_back));
            }
            // With others beside it, a task ends when it hears.
            Some(Action::Abort { id, .. }) if lanes > 1 && peer.running.contains(&id) => {
                peer.answers(id, None)
            }
            Some(Action::Abort { id, .. }) => {
                peer.aborted.insert(id);
            }
            Some(other) => panic!("{other:?} is not for a worker's ears"),
            None => {}
        }
    }

    fn read(&mut self, worker: usize) {
        let Some(said) = self.peers[worker].said.pop_front() else {
            return;
        };
        if self.phase == Phase::Closed {
            return;
        }
        match said {
            Said::Answer(id, run_time) => {
                assert_eq!(self.state.payload(worker, id), Some(&id));
                let outcome = self.state.answered(worker, id, run_time);
                if self.peers[worker].settled.remove(&id) {
                    assert_eq!(outcome, Some(None));
                } else {
                    assert_eq!(self.task(id).place, Place::At(worker));
                    assert_eq!(outcome, Some(Some(id)));
                    self.peers[worker].stopping.remove(&id);
                    self.end(id);
                }
                // One that is tried again may be back already.
                if self.task(id).place == Place::Ended {
                    assert_eq!(self.state.answered(worker, id, run_time), None, "a second answer");
                }
            }
            Said::Recalled(ids) => {
                self.peers[worker].recalling = false;
                self.state.recalled(worker, &ids);
                for id in ids {
                    self.give_back(worker, id);
                }
            }
        }
        self.act();
    }

    /// A task that `worker` had not started waits again, unless its outcome is settled.
    fn give_back(&mut self, worker: usize, id: u64) {
        self.peers[worker].stopping.remove(&id);
        if !self.peers[worker].settled.remove(&id) {
            assert_eq!(self.task(id).place, Place::At(worker));
            self.task(id).place = Place::Queued;
        }
    }

    fn die(&mut self, worker: usize, rest: bool) {
        if !matches!(self.peers[worker].process, Process::Runs | Process::Ends) {
            return;
        }
        // First what it had still said, as the pool does.
        while !self.peers[worker].said.is_empty() {
            self.read(worker);
        }
        let running = self.peers[worker].running.clone();
        let started: Vec<Started> = running
            .iter()
            .map(|&id| Started {
                id,
                element: id + 1,
                since: 0,
            })
            .collect();
        let mut lost = self.state.lost(worker, &started);
        self.peers[worker].process = Process::Gone;
        if self.phase == Phase::Closed {
            assert_eq!(lost, []);
            self.bury(worker);
            return;
        }
        lost.sort_unstable();
        let mut expected: Vec<(u64, u64)> = running
            .into_iter()
            .filter(|id| !self.peers[worker].settled.contains(id))
            .map(|id| (id, id + 1))
            .collect();
        expected.sort_unstable();
        assert_eq!(lost, expected);
        for &(id, _) in &lost {
            self.end(id);
        }
        for id in self.at(worker) {
            self.give_back(worker, id);
        }
        self.bury(worker);
        self.act();
        if rest {
            for (id, _) in lost {
                let Task { priority, bytes, .. } = *self.task(id);
                self.task(id).place = Place::Queued;
                self.state.resubmit(priority, id, 1, bytes, id);
                self.act();
            }
        }
    }

    /// Nothing is left of the process.
    fn bury(&mut self, worker: usize) {
        let number = self.peers[worker].number;
        self.peers[worker] = Peer {
            process: Process::Gone,
            ..Peer::new(number)
        };
    }

    fn terminate(&mut self) {
        let (mut queued, mut sent) = self.state.terminate();
        self.phase = Phase::Closed;
        self.refuse_waiting();
        queued.sort_unstable();
        sent.sort_unstable();
        assert_eq!(queued, self.queued().collect::<Vec<_>>());
        for &id in queued.iter().chain(&sent) {
            self.end(id);
        }
        assert!(self.tasks.values().all(|task| task.place == Place::Ended));
        for peer in &mut self.peers {
            peer.stopped = true;
            peer.settled.clear();
            peer.stopping.clear();
            if peer.process == Process::Runs {
                peer.process = Process::Ends;
            }
        }
        assert_eq!(self.state.next_action(), None, "work for a pool that has ended");
    }

    /// Does what the state has decided, and looks whether it may.
    fn act(&mut self) {
        while let Some(action) = self.state.next_action() {
            match action {
                Action::Start { worker, number } => {
                    assert_ne!(self.phase, Phase::Closed);
                    assert!(number < self.sizing.most, "a number beyond the greatest");
                    let peer = Peer::new(number);
                    if worker == self.peers.len() {
                        self.peers.push(peer);
                    } else {
                        assert_eq!(self.peers[worker].process, Process::Gone, "an index in use");
                        self.peers[worker] = peer;
                    }
                }
                Action::Send {
                    worker,
                    id,
                    payload,
                    urgent,
                } => {
                    assert_eq!(payload, id);
                    assert_eq!(self.task(id).place, Place::Queued, "task {id} is sent");
                    let first = self
                        .queued()
                        .min_by_key(|id| (Reverse(self.tasks[id].priority), *id));
                    assert_eq!(first, Some(id), "the order of tasks");
                    assert_eq!(
                        self.peers[worker].process,
                        Process::Runs,
                        "sent to a worker that ends"
                    );
                    assert!(!self.peers[worker].recalling, "sent to a worker that gives back");
                    assert!(
                        !self.peers[worker].is_doomed(),
                        "sent behind a task that shall end"
                    );
                    assert_eq!(urgent, self.at(worker).len() < self.sizing.lanes);
                    self.task(id).place = Place::At(worker);
                    self.peers[worker].on_the_way.push_back(id);
                }
                Action::Admitted { payload: id } => {
                    let tasks = self.tasks.iter().filter(|(_, task)| task.place == Place::Waits);
                    let tasks = tasks.map(|(&id, task)| (Reverse(task.priority), id));
                    let rooms = self.reserving.iter().filter(|&(_, &offered)| !offered);
                    let first = tasks.chain(rooms.map(|(&id, _)| (Reverse(0), id))).min();
                    assert_eq!(first.map(|(_, id)| id), Some(id), "somebody was overtaken");
                    match self.reserving.get_mut(&id) {
                        Some(offered) => {
                            *offered = true;
                            self.kept += 1;
                        }
                        None => self.task(id).place = Place::Queued,
                    }
                }
                Action::Recall { worker } => {
                    let peer = &mut self.peers[worker];
                    assert!(!peer.recalling, "recalled twice");
                    peer.recalling = true;
                    peer.told.push_back(action);
                }
                Action::Abort { worker, .. } => self.peers[worker].told.push_back(action),
                Action::Stop { worker } => {
                    assert!(self.peers[worker].is_doomed(), "stopped for nothing");
                    if !self.hard {
                        assert!(!self.peers[worker].recalling);
                        assert_eq!(
                            self.at(worker).len(),
                            1,
                            "stopped with tasks that have not started"
                        );
                    }
                    self.peers[worker].process = Process::Ends;
                    self.peers[worker].stopped = true;
                }
                Action::Shutdown { worker } => {
                    assert!(self.at(worker).is_empty(), "told to end with tasks");
                    assert_eq!(self.peers[worker].process, Process::Runs, "told to end twice");
                    self.peers[worker].process = Process::Ends;
                }
            }
        }
    }

    /// What holds after every event.
    fn check(&self) {
        let workers = 0..self.peers.len();
        let queued = self.queued().count();
        let waiting: usize = workers.clone().map(|worker| self.waiting(worker)).sum();
        assert_eq!(self.state.queued(), queued + waiting);
        assert_eq!(self.state.phase(), self.phase);
        self.check_room();
        for worker in workers.clone() {
            assert_eq!(self.state.is_idle(worker), self.at(worker).is_empty());
            assert!(
                !self.state.workers[worker].is_up() || self.peers[worker].process == Process::Runs,
                "worker {worker} has ended and may have tasks"
            );
        }
        let idle = workers.clone().find(|&worker| {
            let peer = &self.peers[worker];
            self.is_ready(worker)
                && !peer.recalling
                && !peer.is_doomed()
                && self.at(worker).len() < self.sizing.lanes
        });
        if let Some(idle) = idle {
            assert_eq!(queued, 0, "tasks wait in the queue while worker {idle} is idle");
            let is_up = |&worker: &usize| self.state.workers[worker].is_up();
            // Short tasks may have their turn before the idle one has woken up.
            let near = match self.state.gathers() {
                true => self.state.at_hand(),
                false => 0,
            };
            let stuck = workers
                .clone()
                .filter(is_up)
                .find(|&worker| self.waiting(worker) > near);
            assert!(
                stuck.is_none() || self.peers.iter().any(|peer| peer.recalling),
                "tasks wait at worker {stuck:?} while worker {idle} is idle, and nobody calls them back"
            );
        }
        self.check_staff();
        self.check_counts();
    }

    /// Whether the workers are counted as they are.
    fn check_counts(&self) {
        let lanes = self.sizing.lanes;
        let workers = || self.state.workers.iter();
        let total = self.state.workers.total();
        assert_eq!(
            total.tasks,
            workers().map(|worker| worker.in_flight.len()).sum::<usize>()
        );
        assert_eq!(
            total.waiting,
            workers().map(|worker| worker.waiting(lanes)).sum::<usize>()
        );
        let waiting_bytes = workers().map(|worker| worker.in_flight.waiting_bytes());
        assert_eq!(total.waiting_bytes, waiting_bytes.sum::<usize>());
        let open = || workers().filter(|worker| worker.takes_tasks());
        let idle = open().map(|worker| lanes.saturating_sub(worker.in_flight.len()));
        assert_eq!(total.idle_lanes, idle.sum::<usize>());
        let busy = workers().filter(|worker| !worker.in_flight.is_empty() && !worker.held);
        assert_eq!(total.busy, busy.count());
        for least in 0..3 {
            let loads = open()
                .filter(|worker| !worker.held || worker.in_flight.len() < lanes)
                .map(|worker| worker.in_flight.len());
            let fewest = loads.filter(|&load| load >= least).min();
            let found = self.state.workers.least_loaded(least as u16);
            assert_eq!(found.map(|(_, load)| load), fewest);
        }
        let waits = workers()
            .filter(|worker| worker.is_up())
            .map(|worker| worker.waiting(lanes));
        let found = self.state.workers.most_waiting();
        assert_eq!(found.map_or(0, |(_, waiting)| waiting), waits.max().unwrap_or(0));
    }

    /// Whether what waits is counted, and nobody waits for room that there is.
    fn check_room(&self) {
        let occupancy = self.state.occupancy();
        let behind = |worker: &Worker<u64>| {
            worker
                .in_flight
                .iter()
                .skip(self.sizing.lanes)
                .map(|task| task.bytes)
                .sum()
        };
        let bytes: Vec<usize> = self.state.workers.iter().map(behind).collect();
        let queued_bytes: usize = self.queued().map(|id| self.tasks[&id].bytes).sum();
        assert_eq!(
            occupancy.bytes,
            (queued_bytes + bytes.iter().sum::<usize>()) as u64
        );
        assert_eq!(occupancy.waiting, self.state.queued());
        let waits = self.tasks.values().any(|task| task.place == Place::Waits)
            || self.reserving.values().any(|offered| !offered);
        assert_eq!(waits, self.state.admission.first().is_some());
        assert!(
            !waits || self.state.bound_hit(i32::MIN, None).is_some(),
            "there is room, and somebody waits for it"
        );
    }

    /// Whether there are as many workers as there should be, and not more that work.
    fn check_staff(&self) {
        let count = |states: &[WorkerState]| {
            let workers = self.state.workers.iter();
            workers.filter(|worker| states.contains(&worker.state)).count()
        };
        let size = self.state.size();
        assert!(self.sizing.least <= size && size <= self.sizing.most);
        let working = count(&[WorkerState::Ready, WorkerState::Retiring]);
        assert!(working <= size, "{working} workers where {size} are wanted");
        let (ready, standby) = (count(&[WorkerState::Ready]), count(&[WorkerState::Standby]));
        let coming = count(&[WorkerState::Starting]) + standby;
        if self.phase == Phase::Open || (self.phase == Phase::Closing && self.queued().next().is_some()) {
            assert!(
                ready + coming >= size.max(usize::from(self.phase == Phase::Closing)),
                "{ready} workers and {coming} to come where {size} are wanted"
            );
        }
        assert!(
            standby == 0 || working == size,
            "a worker stands by while a place is free"
        );
        let outstanding = self
            .tasks
            .values()
            .filter(|task| !matches!(task.place, Place::Waits | Place::Ended))
            .count();
        if self.phase == Phase::Open {
            assert!(size >= outstanding.div_ceil(self.sizing.lanes).min(self.sizing.most));
        }
        let mut numbers = BTreeSet::new();
        for (worker, peer) in self.state.workers.iter().zip(&self.peers) {
            if worker.state == WorkerState::Ready && worker.wear == Wear::None {
                assert!(numbers.insert(peer.number), "two workers of one number");
            }
        }
    }

    /// Lets everything take its course. Tasks end by themselves, except those that shall end: they would run for ever,
    /// and the pool must stop them.
    fn settle(&mut self) {
        for _ in 0..5000 {
            let mut progress = false;
            for worker in 0..self.peers.len() {
                progress |= self.settle_worker(worker);
            }
            if !progress {
                return;
            }
        }
        panic!("no end is in sight");
    }

    fn settle_worker(&mut self, worker: usize) -> bool {
        let peer = &self.peers[worker];
        let free = peer.running.len() < self.sizing.lanes;
        let is_doomed = |id: &u64| peer.settled.contains(id) || peer.stopping.contains(id);
        let finished = peer.running.iter().position(|id| !is_doomed(id));
        let event = match peer.process {
            Process::Gone => return false,
            Process::Starting => Event::Start(worker),
            _ if !peer.said.is_empty() => Event::Read(worker),
            _ if peer.stopped => Event::Die { worker, rest: false },
            Process::Ends
                if peer.running.is_empty() && peer.on_the_way.is_empty() && peer.arrived.is_empty() =>
            {
                Event::Die { worker, rest: false }
            }
            _ if !peer.on_the_way.is_empty() && (self.overtaking == 0 || peer.told.is_empty()) => {
                Event::Arrive(worker)
            }
            _ if !peer.told.is_empty() => {
                self.overtaking = self.overtaking.saturating_sub(1);
                Event::Hear(worker)
            }
            _ if free && !peer.arrived.is_empty() => Event::Begin(worker),
            _ => match finished {
                Some(task) => Event::Finish(worker, task, 50),
                None if peer.is_doomed() => Event::Unresponsive(worker),
                None => return false,
            },
        };
        self.handle(event);
        true
    }
}

fn sizings() -> impl Strategy<Value = Sizing> {
    let tasks = prop_oneof![Just(None), (0..12_usize).prop_map(Some)];
    let bytes = prop_oneof![Just(None), (1..3000_u64).prop_map(Some)];
    let capacity = (tasks, bytes).prop_map(|(tasks, bytes)| Capacity { tasks, bytes });
    let tasks_per_life = prop_oneof![2 => Just(None), 1 => (1..6_u64).prop_map(Some)];
    let processors = prop_oneof![Just(usize::MAX), 1..4_usize];
    (
        0..4_usize,
        0..4_usize,
        1..4_usize,
        processors,
        capacity,
        tasks_per_life,
    )
        .prop_map(
            |(least, more, lanes, processors, capacity, tasks_per_life)| Sizing {
                least,
                most: (least + more).max(1),
                lanes,
                processors,
                capacity,
                tasks_per_life,
            },
        )
}

#[test]
fn a_worker_that_is_let_go_may_leave_room_for_another() {
    let capacity = Capacity {
        tasks: Some(0),
        bytes: None,
    };
    let sizing = Sizing {
        least: 0,
        most: 2,
        lanes: 1,
        processors: usize::MAX,
        capacity,
        tasks_per_life: None,
    };
    let mut world = World::new(sizing, 0);
    let submit = Event::Submit {
        priority: 0,
        bytes: 0,
        waits: false,
    };
    // Two workers are started for two tasks, and the first does both.
    world.handle(submit.clone());
    world.handle(submit);
    world.handle(Event::Start(0));
    for _ in 0..2 {
        for event in [
            Event::Arrive(0),
            Event::Begin(0),
            Event::Finish(0, 0, 50),
            Event::Read(0),
        ] {
            world.handle(event);
        }
    }
    // Its lane is kept for somebody, and somebody else waits for another.
    world.handle(Event::Reserve);
    world.handle(Event::Reserve);
    assert_eq!(world.state.waiting_for_room(), 1);
    world.handle(Event::Idle(0));
    assert_eq!(world.state.waiting_for_room(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_order_of_events_keeps_the_promises(
        sizing in sizings(),
        events in events(),
        overtaking in 0..6_usize,
    ) {
        let mut world = World::new(sizing, overtaking);
        for event in events {
            world.handle(event);
        }
        world.settle();
        // Room that somebody keeps and does not use may be what others wait for.
        while !world.reserving.is_empty() || world.kept > 0 {
            world.handle(Event::Reserved(0, Reserved::GiveUp));
            world.settle();
        }
        for (id, task) in &world.tasks {
            prop_assert_eq!(task.place, Place::Ended, "task {} never ends", id);
        }
        world.handle(Event::Close);
        world.settle();
        for peer in &world.peers {
            prop_assert_eq!(peer.process, Process::Gone, "a worker that stays");
        }
        prop_assert_eq!(world.state.processes(), 0);
        prop_assert_eq!((world.state.queued(), world.state.running()), (0, 0));
    }
}
