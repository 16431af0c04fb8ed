//! How many workers a pool has by default: the processors that this process may use.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// How long a quota counts that was read, for the next pool.
const FRESH: Duration = Duration::from_secs(1);

/// Processors that this process may use: its affinity, bounded by the processor quota of its cgroups, which is
/// rounded up; at least 1.
pub(crate) fn available() -> usize {
    let affinity = rustix::thread::sched_getaffinity(None)
        .map(|set| set.count() as usize)
        .ok();
    let count = affinity
        .filter(|&count| count > 0)
        .or_else(|| available_parallelism().ok().map(usize::from));
    count.unwrap_or(1).min(quota().unwrap_or(usize::MAX)).max(1)
}

/// The quota of this process's cgroups. To read it takes a tenth of the time in which a process starts.
fn quota() -> Option<usize> {
    static READ: Mutex<Option<(Instant, Option<usize>)>> = Mutex::new(None);
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, quota)) = *read
        && at.elapsed() < FRESH
    {
        return quota;
    }
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok();
    let quota = cgroups.and_then(|cgroups| {
        cgroup_quota(&cgroups, |path| {
            fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok()
        })
    });
    *read = Some((Instant::now(), quota));
    quota
}

/// The smallest quota on the way from this process's cgroups up to their roots. `read` gives the content of files
/// under `/sys/fs/cgroup`.
///
/// Formats: `cgroups(7)`; `cpu.max` in the kernel's `cgroup-v2.rst`, `cpu.cfs_quota_us` in `sched-bwc.rst`.
fn cgroup_quota(cgroups: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let mut smallest = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // The unified hierarchy has its files under the mount point or, in a hybrid set-up, under `unified`.
        let roots: &[&str] = match controllers {
            "" => &["", "unified/"],
            controllers if controllers.split(',').any(|controller| controller == "cpu") => {
                &["cpu/", "cpu,cpuacct/"]
            }
            _ => continue,
        };
        for directory in ancestors(path) {
            for root in roots {
                let quota = if controllers.is_empty() {
                    read(&format!("{root}{directory}cpu.max"))
                        .as_deref()
                        .and_then(parse_cpu_max)
                } else {
                    let quota = read(&format!("{root}{directory}cpu.cfs_quota_us"));
                    let period = read(&format!("{root}{directory}cpu.cfs_period_us"));
                    quota
                        .zip(period)
                        .and_then(|(quota, period)| processors(&quota, &period))
                };
                smallest = match (smallest, quota) {
                    (Some(a), Some(b)) => Some(usize::min(a, b)),
                    (a, b) => a.or(b),
                };
            }
        }
    }
    smallest
}

/// `/a/b` as `a/b/`, `a/`, and the root.
fn ancestors(path: &str) -> impl Iterator<Item = String> + '_ {
    Path::new(path).ancestors().map(|directory| {
        let directory = directory.to_string_lossy();
        let directory = directory.trim_matches('/');
        if directory.is_empty() {
            String::new()
        } else {
            format!("{directory}/")
        }
    })
}

/// `quota period`, or `max period`.
fn parse_cpu_max(content: &str) -> Option<usize> {
    let (quota, period) = content.trim().split_once(' ')?;
    processors(quota, period)
}

/// A quota as whole processors, rounded up. `max` and negative numbers mean that there is none.
fn processors(quota: &str, period: &str) -> Option<usize> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    usize::try_from(quota.div_ceil(period))
        .ok()
        .map(|processors| processors.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_rounded_up() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("10000 100000\n"), Some(1));
    }

    #[test]
    fn no_quota_is_no_bound() {
        for content in ["max 100000\n", "", "max", "100000 0", "nonsense here"] {
            assert_eq!(parse_cpu_max(content), None, "{content:?}");
        }
        assert_eq!(processors("-1", "100000"), None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let read = |path: &str| match path {
            "app/web/cpu.max" => Some("max 100000".to_owned()),
            "app/cpu.max" => Some("300000 100000".to_owned()),
            "cpu.max" => Some("800000 100000".to_owned()),
            _ => None,
        };
        assert_eq!(cgroup_quota("0::/app/web\n", read), Some(3));
    }

    #[test]
    fn the_older_hierarchy_is_read_too() {
        let read = |path: &str| match path {
            "cpu,cpuacct/box/cpu.cfs_quota_us" => Some("250000\n".to_owned()),
            "cpu,cpuacct/box/cpu.cfs_period_us" => Some("100000\n".to_owned()),
            _ => None,
        };
        assert_eq!(cgroup_quota("5:cpu,cpuacct:/box\n0::/\n", read), Some(3));
    }

    #[test]
    fn this_machine_has_a_processor() {
        assert!(available() >= 1);
    }
}
