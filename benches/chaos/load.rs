//! Who submits tasks, in every way there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use procession::{TaskError, TryApplyError};
use tokio::time::timeout;

use crate::random::Random;
use crate::site::Site;
use crate::tally::{Class, Entry, Outcome, Outcomes, Tally};
use crate::tasks::{Action, Answer, Order, bytes, perform, perform_async};

/// What all who submit have in common.
pub(crate) struct Load {
    pub(crate) tally: Arc<Tally>,
    pub(crate) is_over: AtomicBool,
    /// What each submitter waits for, since when.
    pub(crate) waits: Mutex<HashMap<usize, (String, Instant)>>,
    began: Instant,
    /// Tasks so far that cost a worker.
    violent: AtomicU64,
}

/// Tasks for each second that may cost a worker, for the rest must get some work done too.
const VIOLENT_PER_SECOND: u64 = 25;

impl Load {
    pub(crate) fn new(tally: Arc<Tally>) -> Self {
        Self {
            tally,
            is_over: AtomicBool::new(false),
            waits: Mutex::default(),
            began: Instant::now(),
            violent: AtomicU64::new(0),
        }
    }

    fn may_be_violent(&self) -> bool {
        let due = self.began.elapsed().as_millis() as u64 * VIOLENT_PER_SECOND / 1000;
        let is_due = self.violent.load(Relaxed) < due;
        self.violent.fetch_add(u64::from(is_due), Relaxed);
        is_due
    }

    pub(crate) fn wait(&self, submitter: usize, what: String) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.insert(submitter, (what, Instant::now()));
    }

    pub(crate) fn wait_over(&self, submitter: usize) {
        self.waits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&submitter);
    }

    /// Those that have waited longer than this.
    pub(crate) fn stuck(&self, fuse: Duration) -> Vec<String> {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = waits.values().filter(|(_, since)| since.elapsed() > fuse);
        stuck
            .map(|(what, since)| format!("{what}, for {:?}", since.elapsed()))
            .collect()
    }

    /// A task of some kind. Only where it will be stopped may it be one that does not end.
    pub(crate) fn order(&self, random: &mut Random, site: &Site, is_stopped: bool) -> Order {
        let action = if is_stopped && random.one_in(4) {
            *random
                .pick(&[Action::Stuck, Action::Cooperative])
                .unwrap_or(&Action::Spin)
        } else if random.one_in(25) && self.may_be_violent() {
            let violent = [
                Action::Exit,
                Action::Abort,
                Action::Segfault,
                Action::CloseFiles,
                Action::Grandchild,
                Action::Grandchild,
            ];
            if site.has_memory_limit && random.one_in(3) {
                Action::Hog
            } else {
                match random.pick(&violent) {
                    // The runtime of async tasks, which has descriptors of its own, would panic in another's.
                    Some(Action::CloseFiles) if site.is_async => Action::Abort,
                    action => action.copied().unwrap_or(Action::Exit),
                }
            }
        } else {
            match random.within(0..40) {
                0 => Action::Panic,
                1 => Action::Allocate,
                2 => Action::Print,
                3..8 => Action::Sleep,
                8 => Action::Cooperative,
                _ => Action::Spin,
            }
        };
        let micros = match action {
            Action::Stuck => 60_000_000,
            Action::Cooperative if is_stopped => 5_000_000,
            _ if random.one_in(30) => random.within(0..20_000),
            _ => random.within(0..300),
        };
        let size = |random: &mut Random| match random.within(0..400) {
            0 => random.within(0..4 << 20),
            1..10 => random.within(0..100_000),
            _ => random.within(0..500),
        } as usize;
        let len = size(random);
        let payload = if len == 0 {
            Bytes::new()
        } else {
            bytes(random.next(), len)
        };
        Order {
            id: self.tally.next_id(),
            action,
            seed: random.next(),
            micros,
            answer: size(random),
            payload,
        }
    }

    /// Small ones, many of them together.
    fn elements(&self, random: &mut Random, site: &Site) -> Vec<Order> {
        let count = if random.one_in(10) { 1000 } else { 100 };
        let count = random.within(0..count);
        let mut orders: Vec<Order> = (0..count).map(|_| self.order(random, site, false)).collect();
        for order in &mut orders {
            order.micros /= 20;
            order.answer %= 1000;
            order.payload.truncate(1000);
            // One failure ends a map, so that they must be rare for some to come to their end.
            if order.action == Action::Panic && !random.one_in(8) {
                order.action = Action::Spin;
            }
        }
        orders
    }

    fn enter_all(
        &self,
        site: &Site,
        orders: &[Order],
        class: Class,
        retries: u32,
        may: Outcomes,
    ) -> Vec<Entry> {
        let may = may.with(&[]);
        let enter = |order: &Order| self.tally.enter(site.name, order, class, retries, may);
        debug_assert!(retries >= site.retries, "a pool's own retries count for maps too");
        orders.iter().map(enter).collect()
    }

    /// Submits until the load is over.
    pub(crate) async fn submit(self: Arc<Self>, site: Arc<Site>, number: usize, seed: u64) {
        let mut random = Random::new(seed);
        while !self.is_over.load(Relaxed) {
            let way = random.within(0..24);
            self.wait(number, format!("way {way} on pool {}", site.name));
            match way {
                0..6 => self.apply(&site, &mut random).await,
                6..8 => self.dropped(&site, &mut random).await,
                8..11 => self.aborted(&site, &mut random).await,
                11 => self.detached(&site, &mut random),
                12..16 => self.options(&site, &mut random).await,
                16..18 => self.try_apply(&site, &mut random).await,
                18 => self.map(&site, &mut random).await,
                19..21 => self.collect(&site, &mut random).await,
                21 => self.imap(&site, &mut random, number).await,
                22 => self.unordered(&site, &mut random).await,
                _ => self.map_aborted(&site, &mut random).await,
            }
            self.wait_over(number);
            // Where nothing waits, one submitter must not keep its thread.
            tokio::task::yield_now().await;
        }
    }

    async fn apply(&self, site: &Site, random: &mut Random) {
        let order = self.order(random, site, false);
        let entry = self
            .tally
            .enter(site.name, &order, Class::Apply, site.retries, site.may);
        let result = if site.is_async && random.one_in(2) {
            site.pool.asynchronous().apply(perform_async, order).await
        } else {
            site.pool.apply(perform, order).await
        };
        self.tally.settle(&entry, &result);
    }

    async fn dropped(&self, site: &Site, random: &mut Random) {
        // A blocking task that is dropped runs to its end where its worker has others too.
        let order = self.order(random, site, !site.is_async);
        let entry = self
            .tally
            .enter(site.name, &order, Class::Dropped, site.retries, site.may);
        let call = if site.is_async && random.one_in(2) {
            site.pool.asynchronous().apply(perform_async, order)
        } else {
            site.pool.apply(perform, order)
        };
        match timeout(random.micros(0..4000), call).await {
            Ok(result) => self.tally.settle(&entry, &result),
            Err(_) => self.tally.settle_as(&entry, Outcome::Dropped),
        }
    }

    async fn aborted(&self, site: &Site, random: &mut Random) {
        let is_stopped = !site.is_async && random.one_in(3);
        let order = self.order(random, site, is_stopped);
        let may = site.may.with(&[Outcome::Cancelled]);
        let (aborts, class) = match is_stopped || random.one_in(3) {
            true => (true, Class::Aborted),
            false => (false, Class::Async),
        };
        let entry = self.tally.enter(
            site.name,
            &order,
            class,
            site.retries,
            if aborts { may } else { site.may },
        );
        let mut handle = if site.is_async {
            site.pool.asynchronous().apply_async(perform_async, order)
        } else {
            site.pool.apply_async(perform, order)
        };
        if random.one_in(2) {
            self.tally.callbacks_wanted.fetch_add(1, Relaxed);
            let (on_value, on_error) = (Arc::clone(&self.tally), Arc::clone(&self.tally));
            handle = handle
                .callback(move |_| _ = on_value.callbacks_run.fetch_add(1, Relaxed))
                .error_callback(move |_| _ = on_error.callbacks_run.fetch_add(1, Relaxed));
        }
        let result = if aborts {
            match timeout(random.micros(0..5000), &mut handle).await {
                Ok(result) => result,
                Err(_) => {
                    handle.abort();
                    handle.await
                }
            }
        } else {
            handle.await
        };
        self.tally.settle(&entry, &result);
    }

    fn detached(&self, site: &Site, random: &mut Random) {
        let order = self.order(random, site, false);
        let entry = self
            .tally
            .enter(site.name, &order, Class::Detached, site.retries, site.may);
        let on_error = (Arc::clone(&self.tally), entry.clone());
        let on_value = (Arc::clone(&self.tally), entry);
        let handle = site
            .pool
            .apply_async(perform, order)
            .callback(move |answer: &Answer| on_value.0.settle(&on_value.1, &Ok(answer.clone())))
            .error_callback(move |error| on_error.0.settle(&on_error.1, &Err(error.clone())));
        drop(handle);
    }

    async fn options(&self, site: &Site, random: &mut Random) {
        let has_timeout = random.one_in(2);
        let order = self.order(random, site, has_timeout && !site.is_async);
        let mut may = site.may;
        let retries = random.within(0..3) as u32;
        let is_async = site.is_async && random.one_in(2);
        let mut task = if is_async {
            site.pool.asynchronous().task(perform_async, order.clone())
        } else {
            site.pool.task(perform, order.clone())
        };
        task = task.priority(random.within(0..5) as i32 - 2).retries(retries);
        if has_timeout {
            may = may.with(&[Outcome::TimedOutRunning]);
            let most = if random.one_in(10) { 200 } else { 20 };
            task = task.timeout(random.micros(1..most * 1000));
        }
        if random.one_in(3) {
            may = may.with(&[Outcome::TimedOutQueued]);
            task = task.queue_timeout(random.micros(1..50_000));
        }
        if random.one_in(4) {
            may = may.with(&[Outcome::TimedOutQueued, Outcome::TimedOutRunning]);
            task = task.deadline(Instant::now() + random.micros(0..100_000));
        }
        let entry = self.tally.enter(site.name, &order, Class::Options, retries, may);
        let result = if random.one_in(2) {
            task.await
        } else {
            task.submit().await
        };
        self.tally.settle(&entry, &result);
    }

    async fn try_apply(&self, site: &Site, random: &mut Random) {
        let order = self.order(random, site, false);
        let id = order.id;
        let entry = self
            .tally
            .enter(site.name, &order, Class::Try, site.retries, site.may);
        match site.pool.try_apply(perform, order) {
            Ok(handle) => self.tally.settle(&entry, &handle.await),
            Err(TryApplyError::QueueFull(order)) if order.id == id && site.is_bounded => {
                self.tally.settle_as(&entry, Outcome::QueueFull);
            }
            Err(error) => {
                self.tally.mismatch(format!("{entry:?} was refused: {error}"));
                self.tally.settle_as(&entry, Outcome::Skipped);
            }
        }
    }

    async fn map(&self, site: &Site, random: &mut Random) {
        let orders = self.elements(random, site);
        let entries = self.enter_all(site, &orders, Class::Map, site.retries, site.may);
        let mut map = site.pool.map(perform, orders);
        if random.one_in(2) {
            map = map.chunk_size(random.within(1..60) as usize);
        }
        let result = map.await;
        self.settle_whole(&entries, result);
    }

    async fn map_aborted(&self, site: &Site, random: &mut Random) {
        let orders = self.elements(random, site);
        let may = site.may.with(&[Outcome::Cancelled]);
        let entries = self.enter_all(site, &orders, Class::MapAborted, site.retries, may);
        let mut handle = site.pool.map_async(perform, orders);
        let result = match timeout(random.micros(0..20_000), &mut handle).await {
            Ok(result) => result,
            Err(_) => {
                handle.abort();
                handle.await
            }
        };
        self.settle_whole(&entries, result);
    }

    /// One failure is that of all.
    fn settle_whole(&self, entries: &[Entry], result: Result<Vec<Answer>, TaskError>) {
        match result {
            Ok(answers) if answers.len() == entries.len() => {
                for (entry, answer) in entries.iter().zip(answers) {
                    self.tally.settle(entry, &Ok(answer));
                }
            }
            Ok(answers) => {
                let text = format!("{} results for {} elements", answers.len(), entries.len());
                self.tally.mismatch(text);
            }
            Err(_) => entries
                .iter()
                .for_each(|entry| self.tally.settle_as(entry, Outcome::Skipped)),
        }
    }

    async fn collect(&self, site: &Site, random: &mut Random) {
        let orders = self.elements(random, site);
        let retries = site.retries + random.within(0..2) as u32;
        let mut may = site.may;
        let mut map = if site.is_async && random.one_in(2) {
            site.pool.asynchronous().map(perform_async, orders.clone())
        } else {
            site.pool.map(perform, orders.clone())
        };
        map = map.retries(retries);
        if random.one_in(2) {
            map = map.chunk_size(random.within(1..60) as usize);
        }
        if random.one_in(2) {
            may = may.with(&[Outcome::TimedOutRunning]);
            map = map.timeout(random.micros(1..10_000));
        }
        if random.one_in(8) {
            may = may.with(&[Outcome::TimedOutRunning, Outcome::TimedOutQueued]);
            map = map.deadline(Instant::now() + random.micros(1..100_000));
        }
        let entries = self.enter_all(site, &orders, Class::Collect, retries, may);
        let results = map.collect_results().await;
        self.settle_each(&entries, results);
    }

    fn settle_each(&self, entries: &[Entry], results: Vec<Result<Answer, TaskError>>) {
        if results.len() != entries.len() {
            let text = format!("{} results for {} elements", results.len(), entries.len());
            self.tally.mismatch(text);
        }
        for (entry, result) in entries.iter().zip(results) {
            self.tally.settle(entry, &result);
        }
    }

    async fn imap(&self, site: &Site, random: &mut Random, number: usize) {
        let orders = self.elements(random, site);
        let entries = self.enter_all(site, &orders, Class::Imap, site.retries, site.may);
        let taken = self.taken(random, entries.len());
        let stream = site
            .pool
            .imap(perform, orders)
            .look_ahead(random.within(1..200) as usize);
        let mut stream = stream.take(taken);
        let mut results = Vec::new();
        while let Some(result) = stream.next().await {
            results.push(result);
            // Each of them has its time: one after the other they may take long.
            self.wait(number, format!("an element of a stream on pool {}", site.name));
        }
        let (settled, rest) = entries.split_at(taken);
        self.settle_each(settled, results);
        rest.iter()
            .for_each(|entry| self.tally.settle_as(entry, Outcome::Dropped));
    }

    async fn unordered(&self, site: &Site, random: &mut Random) {
        let orders = self.elements(random, site);
        let entries = self.enter_all(site, &orders, Class::Unordered, site.retries, site.may);
        let taken = self.taken(random, entries.len());
        let mut stream = site.pool.imap_unordered(perform, orders).take(taken);
        let mut left: HashMap<u64, Entry> = entries.into_iter().map(|entry| (entry.id, entry)).collect();
        let (mut errors, mut count) = (0, 0);
        while let Some(result) = stream.next().await {
            count += 1;
            match result {
                Ok(answer) => match left.remove(&answer.id) {
                    Some(entry) => self.tally.settle(&entry, &Ok(answer)),
                    None => self
                        .tally
                        .mismatch(format!("task {} came twice or unasked", answer.id)),
                },
                // Which element it was, it does not say.
                Err(_) => errors += 1,
            }
        }
        if count != taken || errors > left.len() {
            self.tally.mismatch(format!(
                "{count} results, {errors} of them errors, for {taken} elements"
            ));
        }
        left.values()
            .for_each(|entry| self.tally.settle_as(entry, Outcome::Skipped));
    }

    /// How many results of a stream are taken before it is dropped: all of them as often as not.
    fn taken(&self, random: &mut Random, len: usize) -> usize {
        if len > 0 && random.one_in(2) {
            random.within(0..len as u64) as usize
        } else {
            len
        }
    }
}
