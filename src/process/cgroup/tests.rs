//! Against directories that look like the kernel's.

use tempfile::TempDir;

use super::*;

/// A directory that is removed with what is in it.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &Path) -> String {
        fs::read_to_string(self.path().join(path)).unwrap()
    }
}

const MOUNTS: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda rw
31 22 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
35 22 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory
36 22 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
";

#[test]
fn the_own_directory_is_found_in_each_hierarchy() {
    let cgroups = "4:memory:/box/a\n1:cpu,cpuacct:/\n0::/user.slice/b:c\n";
    assert_eq!(
        directory(MOUNTS, cgroups, Hierarchy::Unified),
        Some("/sys/fs/cgroup/unified/user.slice/b:c".into())
    );
    assert_eq!(
        directory(MOUNTS, cgroups, Hierarchy::Memory),
        Some("/sys/fs/cgroup/memory/box/a".into())
    );
}

#[test]
fn what_is_mounted_may_be_a_part() {
    let mounts = "35 22 0:32 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup rw";
    let own = |cgroups| directory(mounts, cgroups, Hierarchy::Unified);
    assert_eq!(own("0::/docker/1/app\n"), Some("/sys/fs/cgroup/app".into()));
    assert_eq!(own("0::/elsewhere\n"), None);
    assert_eq!(own("4:memory:/docker/1\n"), None);
    for (mounts, cgroups) in [("", ""), ("nonsense - ", "0"), (" - cgroup2", "0::/")] {
        assert_eq!(directory(mounts, cgroups, Hierarchy::Unified), None);
    }
}

#[test]
fn leaves_are_made_where_memory_is_handed_down_and_that_was_delegated() {
    let scene = Scene::new();
    let own = scene.path().join("service/main");
    scene.put("service/main/cgroup.subtree_control", "");
    scene.put("service/cgroup.subtree_control", "cpu io\n");
    assert_eq!(delegated_at(&own, |_| true), None);
    scene.put("service/cgroup.subtree_control", "cpu memory\n");
    assert_eq!(delegated_at(&own, |_| true), Some(scene.path().join("service")));
    // A privileged process could, and must not, make directories in its neighbours' cgroup.
    assert_eq!(delegated_at(&own, |_| false), None);
    scene.put("service/main/cgroup.subtree_control", "memory\n");
    assert_eq!(delegated_at(&own, |_| false), Some(own));
    let inner = scene.path().join("service/procession-1-0");
    scene.put("service/procession-1-0/cgroup.subtree_control", "");
    assert_eq!(delegated_at(&inner, |_| true), None, "a worker's own leaf");
    assert_eq!(delegated_at(Path::new("/does/not/exist"), |_| true), None);
}

/// A leaf as an older kernel makes it: without `memory.swap.max`.
fn leaf(scene: &Scene) -> Leaf {
    Leaf::create_with(scene.path(), 1 << 20, |directory| {
        ["memory.max", "memory.oom.group", "cgroup.procs", "cgroup.kill"]
            .iter()
            .try_for_each(|file| fs::write(directory.join(file), ""))
    })
    .unwrap()
}

#[test]
fn a_leaf_has_its_limit_and_is_entered() {
    let scene = Scene::new();
    let leaf = leaf(&scene);
    let read = |file| scene.read(&leaf.directory().join(file));
    assert_eq!(read("memory.max"), "1048576");
    assert_eq!(read("memory.oom.group"), "1");
    enter(leaf.directory()).unwrap();
    assert_eq!(read("cgroup.procs"), "0");
    assert!(enter(&scene.path().join("none")).is_err());
}

#[test]
fn a_leaf_goes_when_what_is_in_it_has() {
    let scene = Scene::new();
    let leaf = leaf(&scene);
    assert!(!leaf.remove(), "something is in it");
    assert_eq!(scene.read(&leaf.directory().join("cgroup.kill")), "1");
    for file in fs::read_dir(leaf.directory()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert!(leaf.remove());
    assert!(!leaf.directory().exists());
    assert!(leaf.remove(), "and is not missed");
}

#[test]
fn a_leaf_that_cannot_have_a_limit_is_not_left_behind() {
    let scene = Scene::new();
    assert!(Leaf::create(scene.path(), 1).is_err());
    assert_eq!(fs::read_dir(scene.path()).unwrap().count(), 0);
}

#[test]
fn what_dead_processes_left_is_swept() {
    let scene = Scene::new();
    let own = format!("{LEAF}{}-0", std::process::id());
    // No process has a number like the first.
    for name in ["procession-4294967295-0", own.as_str(), "procession-x", "other"] {
        fs::create_dir(scene.path().join(name)).unwrap();
    }
    scene.put("procession-4294967295-1/cgroup.procs", "");
    sweep(scene.path());
    let mut left: Vec<_> = fs::read_dir(scene.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let mut expected = ["procession-4294967295-1", own.as_str(), "procession-x", "other"];
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn a_leaf_tells_whom_the_kernel_killed_and_why() {
    let scene = Scene::new();
    let leaf = leaf(&scene);
    assert_eq!(leaf.kills(), LeafKills::None);
    for (events, kills) in [
        ("low 0\nmax 31\noom 0\noom_kill 0\n", LeafKills::None),
        (
            "max 31\noom 1\noom_kill 1\noom_group_kill 1\n",
            LeafKills::AtLimit,
        ),
        ("max 0\noom 0\noom_kill 1\n", LeafKills::Elsewhere),
        ("nonsense", LeafKills::None),
    ] {
        fs::write(leaf.directory().join("memory.events"), events).unwrap();
        assert_eq!(leaf.kills(), kills, "{events}");
    }
    assert_eq!(leaf.peak(), None);
    fs::write(leaf.directory().join("memory.peak"), "1048576\n").unwrap();
    assert_eq!(leaf.peak(), Some(1 << 20));
}

#[test]
fn kills_are_those_of_the_nearest_cgroup_that_counts() {
    let scene = Scene::new();
    let own = scene.path().join("a/b");
    scene.put("a/b/cgroup.procs", "");
    scene.put("a/cgroup.procs", "");
    assert_eq!(kills_at(&own), None);
    scene.put("a/memory.events", "oom 7\noom_kill 3\n");
    assert_eq!(kills_at(&own), Some(3));
    // Those of leaves are not in the local count.
    scene.put("a/memory.events.local", "oom 5\noom_kill 2\n");
    assert_eq!(kills_at(&own), Some(2));
    scene.put("a/b/memory.events.local", "oom_kill 0\n");
    assert_eq!(kills_at(&own), Some(0));
}
