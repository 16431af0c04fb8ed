//! The state against a model of workers: random events in any order that the world can bring them in, and after each
//! of them the promises of the module.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something that happens. Numbers of workers and tasks are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Event {
    Submit {
        priority: i32,
        bytes: usize,
    },
    Cancel(usize),
    /// A worker that is missing comes one step nearer to being ready.
    Start(usize),
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
        known: bool,
        rest: bool,
    },
    /// A worker has been silent for long.
    Unresponsive(usize),
    Close,
    Terminate,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let bytes = prop_oneof![9 => 0..1000_usize, 1 => WAITING_BYTES / 2..WAITING_BYTES * 2];
    let run_time = prop_oneof![Just(1_u64), Just(60), Just(10_000)];
    let event = prop_oneof![
        160 => (-1..2, bytes).prop_map(|(priority, bytes)| Event::Submit { priority, bytes }),
        40 => any::<usize>().prop_map(Event::Cancel),
        40 => any::<usize>().prop_map(Event::Start),
        80 => any::<usize>().prop_map(Event::Arrive),
        120 => any::<usize>().prop_map(Event::Begin),
        80 => (any::<usize>(), any::<usize>(), run_time).prop_map(|(w, t, time)| Event::Finish(w, t, time)),
        100 => any::<usize>().prop_map(Event::Hear),
        160 => any::<usize>().prop_map(Event::Read),
        20 => (any::<usize>(), prop::bool::weighted(0.9), prop::bool::weighted(0.3))
            .prop_map(|(worker, known, rest)| Event::Die { worker, known, rest }),
        10 => any::<usize>().prop_map(Event::Unresponsive),
        2 => Just(Event::Close),
        1 => Just(Event::Terminate),
    ];
    prop_oneof![3 => vec(event.clone(), 0..60), 1 => vec(event, 0..400)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queued,
    /// Sent there and not answered; `cancelled` when it has ended for who submitted it.
    At {
        worker: usize,
        cancelled: bool,
    },
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
    Missing,
    Starting,
    Runs,
    /// It was killed or told to end: it takes no more tasks.
    Ends,
    Gone,
}

#[derive(Debug)]
struct Peer {
    process: Process,
    killed: bool,
    on_the_way: VecDeque<u64>,
    arrived: VecDeque<u64>,
    running: Vec<u64>,
    told: VecDeque<Action<u64>>,
    /// Aborts of tasks that are still on their way.
    aborted: BTreeSet<u64>,
    said: VecDeque<Said>,
    /// A recall was sent whose answer has not been read.
    recalling: bool,
}

impl Peer {
    fn new() -> Self {
        Self {
            process: Process::Missing,
            killed: false,
            on_the_way: VecDeque::new(),
            arrived: VecDeque::new(),
            running: Vec::new(),
            told: VecDeque::new(),
            aborted: BTreeSet::new(),
            said: VecDeque::new(),
            recalling: false,
        }
    }

    fn answers(&mut self, id: u64, run_time: Option<Duration>) {
        self.running.retain(|&other| other != id);
        self.said.push_back(Said::Answer(id, run_time));
    }
}

struct World {
    state: State<u64>,
    lanes: usize,
    capacity: Option<usize>,
    phase: Phase,
    tasks: BTreeMap<u64, Task>,
    peers: Vec<Peer>,
    /// How often, in the end, what workers are told may overtake the tasks on their way.
    overtaking: usize,
}

impl World {
    fn new(workers: usize, lanes: usize, capacity: Option<usize>, overtaking: usize) -> Self {
        Self {
            state: State::new(workers, lanes, capacity),
            lanes,
            capacity,
            phase: Phase::Open,
            tasks: BTreeMap::new(),
            peers: (0..workers).map(|_| Peer::new()).collect(),
            overtaking,
        }
    }

    fn task(&mut self, id: u64) -> &mut Task {
        self.tasks.get_mut(&id).unwrap()
    }

    /// Every task ends once.
    fn end(&mut self, id: u64) {
        let place = &mut self.task(id).place;
        assert!(
            matches!(place, Place::Queued | Place::At { cancelled: false, .. }),
            "task {id} ends where it is {place:?}"
        );
        *place = Place::Ended;
    }

    fn queued(&self) -> impl Iterator<Item = u64> {
        let queued = self.tasks.iter().filter(|(_, task)| task.place == Place::Queued);
        queued.map(|(&id, _)| id)
    }

    /// What `worker` was sent and has not answered, and whether it was cancelled.
    fn at(&self, worker: usize) -> Vec<(u64, bool)> {
        let at = self.tasks.iter().filter_map(|(&id, task)| match task.place {
            Place::At {
                worker: other,
                cancelled,
            } if other == worker => Some((id, cancelled)),
            _ => None,
        });
        at.collect()
    }

    fn is_doomed(&self, worker: usize) -> bool {
        self.at(worker).iter().any(|&(_, cancelled)| cancelled)
    }

    fn waiting(&self, worker: usize) -> usize {
        self.at(worker).len().saturating_sub(self.lanes)
    }

    fn handle(&mut self, event: Event) {
        let workers = self.peers.len();
        match event {
            Event::Submit { priority, bytes } => self.submit(priority, bytes),
            Event::Cancel(index) => {
                // Now and then one that has ended; mostly one that somebody may still want.
                let alive = |(_, task): &(&u64, &Task)| index % 8 == 0 || task.place != Place::Ended;
                let ids: Vec<u64> = self.tasks.iter().filter(alive).map(|(&id, _)| id).collect();
                if !ids.is_empty() {
                    self.cancel(ids[index / 8 % ids.len()]);
                }
            }
            Event::Start(worker) => self.start(worker % workers),
            Event::Arrive(worker) => {
                let peer = &mut self.peers[worker % workers];
                peer.arrived.extend(peer.on_the_way.pop_front());
            }
            Event::Begin(worker) => self.begin(worker % workers),
            Event::Finish(worker, task, micros) => {
                let peer = &mut self.peers[worker % workers];
                if !peer.running.is_empty() && !peer.killed {
                    let id = peer.running[task % peer.running.len()];
                    peer.answers(id, Some(Duration::from_micros(micros)));
                }
            }
            Event::Hear(worker) => self.hear(worker % workers),
            Event::Read(worker) => self.read(worker % workers),
            Event::Die { worker, known, rest } => self.die(worker % workers, known, rest),
            Event::Unresponsive(worker) => {
                let worker = worker % workers;
                if self.peers[worker].recalling
                    && let Some(id) = self.state.doomed(worker)
                {
                    self.state.unresponsive(worker, id);
                }
            }
            Event::Close => {
                self.state.close();
                if self.phase == Phase::Open {
                    self.phase = Phase::Closing;
                }
            }
            Event::Terminate => self.terminate(),
        }
        self.act();
        self.check();
    }

    fn submit(&mut self, priority: i32, bytes: usize) {
        let id = self.tasks.len() as u64 + 1;
        let waiting = self.state.queued();
        match self.state.submit(priority, bytes, id) {
            Ok(given) => {
                assert_eq!(given, id);
                assert_eq!(self.phase, Phase::Open);
                let task = Task {
                    priority,
                    bytes,
                    place: Place::Queued,
                };
                self.tasks.insert(id, task);
                self.act();
                if self.capacity.is_some_and(|capacity| waiting >= capacity) {
                    assert!(
                        self.state.queued() <= waiting,
                        "task {id} waits beyond the capacity"
                    );
                }
            }
            Err(Refusal::Closed) => assert_ne!(self.phase, Phase::Open),
            Err(Refusal::Full { capacity }) => {
                assert_eq!(Some(capacity), self.capacity);
                assert!(waiting >= capacity);
            }
        }
    }

    fn cancel(&mut self, id: u64) {
        let Task { priority, place, .. } = *self.task(id);
        let outcome = self.state.cancel(priority, id);
        match place {
            Place::Queued => {
                assert_eq!(outcome, Cancelled::Queued(id));
                self.end(id);
            }
            Place::At {
                worker,
                cancelled: false,
            } => {
                assert_eq!(outcome, Cancelled::InFlight(id));
                self.task(id).place = Place::At {
                    worker,
                    cancelled: true,
                };
            }
            Place::At { cancelled: true, .. } | Place::Ended => assert_eq!(outcome, Cancelled::Unknown),
        }
    }

    fn start(&mut self, worker: usize) {
        match self.peers[worker].process {
            Process::Missing if self.state.wants_workers() => self.peers[worker].process = Process::Starting,
            Process::Starting if self.phase != Phase::Closed => {
                self.peers[worker].process = Process::Runs;
                self.state.ready(worker);
            }
            Process::Missing | Process::Starting => {
                self.state.gone(worker);
                self.peers[worker].process = Process::Gone;
            }
            Process::Runs | Process::Ends | Process::Gone => {}
        }
    }

    fn begin(&mut self, worker: usize) {
        let lanes = self.lanes;
        let peer = &mut self.peers[worker];
        if peer.killed || peer.running.len() >= lanes {
            return;
        }
        if let Some(id) = peer.arrived.pop_front() {
            peer.running.push(id);
            if peer.aborted.remove(&id) {
                peer.answers(id, None);
            }
        }
    }

    fn hear(&mut self, worker: usize) {
        let peer = &mut self.peers[worker];
        if peer.killed {
            return;
        }
        match peer.told.pop_front() {
            Some(Action::Recall { .. }) => {
                let given_back: Vec<u64> = peer.arrived.drain(..).collect();
                peer.aborted.retain(|id| !given_back.contains(id));
                peer.said.push_back(Said::Recalled(given_back));
            }
            Some(Action::Abort { id, .. }) => {
                if peer.running.contains(&id) {
                    peer.answers(id, None);
                } else {
                    peer.aborted.insert(id);
                }
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
                let cancelled = match self.task(id).place {
                    Place::At {
                        worker: at,
                        cancelled,
                    } if at == worker => cancelled,
                    place => panic!("worker {worker} answers task {id}, which is {place:?}"),
                };
                let outcome = self.state.answered(worker, id, run_time);
                assert_eq!(outcome, Some((!cancelled).then_some(id)));
                if cancelled {
                    self.task(id).place = Place::Ended;
                } else {
                    self.end(id);
                }
                assert_eq!(self.state.answered(worker, id, run_time), None, "a second answer");
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

    /// A task that `worker` had not started is nowhere, or has ended if it was cancelled.
    fn give_back(&mut self, worker: usize, id: u64) {
        let place = &mut self.task(id).place;
        *place = match *place {
            Place::At {
                worker: at,
                cancelled,
            } if at == worker => {
                if cancelled {
                    Place::Ended
                } else {
                    Place::Queued
                }
            }
            place => panic!("worker {worker} gives back task {id}, which is {place:?}"),
        };
    }

    fn die(&mut self, worker: usize, known: bool, rest: bool) {
        if !matches!(self.peers[worker].process, Process::Runs | Process::Ends) {
            return;
        }
        // First what it had still said, as the pool does.
        while !self.peers[worker].said.is_empty() {
            self.read(worker);
        }
        let peer = std::mem::replace(&mut self.peers[worker], Peer::new());
        let started: Vec<Started> = peer
            .running
            .iter()
            .map(|&id| Started { id, element: id + 1 })
            .collect();
        let replaced = self.phase != Phase::Closed;
        let mut lost = self
            .state
            .lost(worker, known.then_some(&started[..]), replaced)
            .lost;
        if !replaced {
            assert_eq!(lost, []);
            self.peers[worker].process = Process::Gone;
            self.state.gone(worker);
            return;
        }
        lost.sort_unstable();
        if known {
            let mut expected: Vec<(u64, u64)> = self
                .at(worker)
                .into_iter()
                .filter(|&(id, cancelled)| peer.running.contains(&id) && !cancelled)
                .map(|(id, _)| (id, id + 1))
                .collect();
            expected.sort_unstable();
            assert_eq!(lost, expected);
        } else {
            assert!(lost.len() <= self.lanes);
        }
        for &(id, _) in &lost {
            self.end(id);
        }
        for (id, _) in self.at(worker) {
            self.give_back(worker, id);
        }
        self.act();
        if rest {
            for (id, _) in lost {
                let Task { priority, bytes, .. } = *self.task(id);
                self.task(id).place = Place::Queued;
                self.state.resubmit(priority, id, bytes, id);
                self.act();
            }
        }
    }

    fn terminate(&mut self) {
        let (mut queued, mut sent) = self.state.terminate();
        self.phase = Phase::Closed;
        queued.sort_unstable();
        sent.sort_unstable();
        assert_eq!(queued, self.queued().collect::<Vec<_>>());
        for &id in queued.iter().chain(&sent) {
            self.end(id);
        }
        for task in self.tasks.values_mut() {
            assert!(matches!(
                task.place,
                Place::Ended | Place::At { cancelled: true, .. }
            ));
            task.place = Place::Ended;
        }
        for peer in &mut self.peers {
            peer.killed = true;
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
                    assert!(!self.is_doomed(worker), "sent behind a task that is cancelled");
                    assert_eq!(urgent, self.at(worker).len() < self.lanes);
                    self.task(id).place = Place::At {
                        worker,
                        cancelled: false,
                    };
                    self.peers[worker].on_the_way.push_back(id);
                }
                Action::Recall { worker } => {
                    let peer = &mut self.peers[worker];
                    assert!(!peer.recalling, "recalled twice");
                    peer.recalling = true;
                    peer.told.push_back(action);
                }
                Action::Abort { worker, id } => {
                    assert!(self.lanes > 1);
                    assert_eq!(
                        self.task(id).place,
                        Place::At {
                            worker,
                            cancelled: true
                        }
                    );
                    self.peers[worker].told.push_back(action);
                }
                Action::Kill { worker } => {
                    assert!(self.is_doomed(worker), "killed for nothing");
                    if !self.peers[worker].recalling {
                        assert_eq!(
                            self.at(worker).len(),
                            1,
                            "killed with tasks that have not started"
                        );
                    }
                    self.peers[worker].process = Process::Ends;
                    self.peers[worker].killed = true;
                }
                Action::Shutdown { worker } => {
                    assert_eq!(self.phase, Phase::Closing);
                    assert_eq!(self.queued().next(), None, "shut down with tasks in the queue");
                    assert_eq!(self.at(worker), [], "shut down with tasks");
                    assert_eq!(self.peers[worker].process, Process::Runs, "shut down twice");
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
        for worker in workers.clone() {
            assert_eq!(self.state.in_flight(worker), self.at(worker).len());
            assert_eq!(
                self.state.worker_state(worker) == WorkerState::Ready,
                self.peers[worker].process == Process::Runs
            );
        }
        let idle = workers.clone().find(|&worker| {
            self.peers[worker].process == Process::Runs
                && !self.peers[worker].recalling
                && !self.is_doomed(worker)
                && self.at(worker).len() < self.lanes
        });
        if let Some(idle) = idle {
            assert_eq!(queued, 0, "tasks wait in the queue while worker {idle} is idle");
            let runs = |&worker: &usize| self.peers[worker].process == Process::Runs;
            let stuck = workers
                .clone()
                .filter(runs)
                .find(|&worker| self.waiting(worker) > 0);
            assert!(
                stuck.is_none() || self.peers.iter().any(|peer| peer.recalling),
                "tasks wait at worker {stuck:?} while worker {idle} is idle, and nobody calls them back"
            );
        }
    }

    /// Lets everything take its course. Tasks end by themselves, except those that are cancelled: they would run for
    /// ever, and the pool must stop them.
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
        let free = peer.running.len() < self.lanes;
        let finished = peer
            .running
            .iter()
            .position(|id| !matches!(self.tasks[id].place, Place::At { cancelled: true, .. }));
        let event = match peer.process {
            Process::Gone => return false,
            Process::Missing | Process::Starting => Event::Start(worker),
            _ if !peer.said.is_empty() => Event::Read(worker),
            _ if peer.killed => Event::Die {
                worker,
                known: true,
                rest: false,
            },
            Process::Ends
                if peer.running.is_empty() && peer.on_the_way.is_empty() && peer.arrived.is_empty() =>
            {
                Event::Die {
                    worker,
                    known: true,
                    rest: false,
                }
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
                None => return false,
            },
        };
        self.handle(event);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_order_of_events_keeps_the_promises(
        workers in 1..5_usize,
        lanes in 1..4_usize,
        capacity in prop_oneof![Just(None), (0..12_usize).prop_map(Some)],
        events in events(),
        overtaking in 0..6_usize,
    ) {
        let mut world = World::new(workers, lanes, capacity, overtaking);
        for event in events {
            world.handle(event);
        }
        world.settle();
        for (id, task) in &world.tasks {
            prop_assert_eq!(task.place, Place::Ended, "task {} never ends", id);
        }
        world.handle(Event::Close);
        world.settle();
        for peer in &world.peers {
            prop_assert_eq!(peer.process, Process::Gone, "a worker that stays");
        }
        prop_assert!(world.state.workers.iter().all(|worker| worker.state == WorkerState::Gone));
        prop_assert_eq!((world.state.queued(), world.state.running()), (0, 0));
    }
}
