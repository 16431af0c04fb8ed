//! Promises about the tree itself, held by looking at its text.

#![expect(
    clippy::unwrap_used,
    reason = "a tree that cannot be read is a failure of the test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the tree: its path from the root, with `/`, and its text.
struct Text {
    path: String,
    text: String,
}

impl Text {
    fn read(path: &str) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// A line's place, for a message.
    fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path, line + 1)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths of all files that belong to the tree: what git tracks, or where there is no git, what lies there.
fn tree() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut paths = match listed {
        Ok(listed) if listed.status.success() => String::from_utf8(listed.stdout)
            .unwrap()
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        _ => {
            let mut paths = Vec::new();
            walk(root(), &mut paths);
            paths
        }
    };
    paths.retain(|path| root().join(path).is_file());
    assert!(paths.iter().any(|path| path == "src/lib.rs"), "{paths:?}");
    paths
}

fn walk(directory: &Path, paths: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            walk(&path, paths);
        } else {
            let relative = path.strip_prefix(root()).unwrap();
            paths.push(relative.to_str().unwrap().to_owned());
        }
    }
}

/// The library's own sources.
fn sources() -> Vec<Text> {
    let sources: Vec<Text> = tree()
        .iter()
        .filter(|path| path.starts_with("src/") && path.ends_with(".rs"))
        .map(|path| Text::read(path))
        .collect();
    assert!(sources.len() > 20, "only {} sources were found", sources.len());
    sources
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn is_attribute(line: &str) -> bool {
    line.trim_start().starts_with("#[")
}

/// The comments directly above a line, attributes between them left out.
fn comments_above<'a>(lines: &[&'a str], line: usize) -> Vec<&'a str> {
    lines[..line]
        .iter()
        .rev()
        .copied()
        .take_while(|line| is_comment(line) || is_attribute(line))
        .filter(|line| is_comment(line))
        .collect()
}

/// Whether `word` stands in `line` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(is_part) && !line[start + word.len()..].starts_with(is_part)
    })
}

/// What is left of a line without its comment and the content of its strings.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if in_string => drop(characters.next()),
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if in_string => {}
            character => code.push(character),
        }
    }
    code
}

#[test]
fn the_version_is_in_the_changelog_once() {
    let changelog = Text::read("CHANGELOG.md").text;
    let version = env!("CARGO_PKG_VERSION");
    let sections = changelog
        .lines()
        .filter(|line| line.starts_with(&format!("## [{version}] - ")))
        .count();
    assert_eq!(sections, 1, "sections for {version} in CHANGELOG.md");
    assert_eq!(changelog.matches(version).count(), 1, "{version} in CHANGELOG.md");
    assert!(
        changelog.contains("\n## [Unreleased]\n"),
        "CHANGELOG.md has no section for what comes next"
    );
}

#[test]
fn every_public_async_fn_says_whether_it_is_cancel_safe() {
    let mut functions = 0;
    let mut missing = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if line.trim_start().starts_with("pub async fn ") {
                functions += 1;
                if !says_cancel_safety(&lines, number) {
                    missing.push(source.at(number));
                }
            }
        }
    }
    assert!(functions > 0, "no public async fn was found");
    assert_eq!(
        missing, [""; 0],
        "public async functions without `# Cancel safety`"
    );
}

#[test]
fn every_public_future_and_stream_says_whether_it_is_cancel_safe() {
    let sources = sources();
    let mut names = Vec::new();
    for source in &sources {
        for line in source.text.lines().filter(|line| line.starts_with("impl")) {
            for awaited in [" Future for ", " IntoFuture for ", " Stream for "] {
                if let Some((_, name)) = line.split_once(awaited) {
                    let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
                    names.push(name[..end].to_owned());
                }
            }
        }
    }
    let mut found = 0;
    let mut missing = Vec::new();
    for source in &sources {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(name) = line.strip_prefix("pub struct ") else {
                continue;
            };
            let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
            if names.contains(&name) {
                found += 1;
                if !says_cancel_safety(&lines, number) {
                    missing.push(format!("{name}, {}", source.at(number)));
                }
            }
        }
    }
    assert!(found >= 5, "only {found} public futures were found");
    assert_eq!(missing, [""; 0], "public futures without `# Cancel safety`");
}

fn says_cancel_safety(lines: &[&str], line: usize) -> bool {
    comments_above(lines, line)
        .iter()
        .any(|comment| comment.trim() == "/// # Cancel safety")
}

#[test]
fn every_example_is_listed_in_the_readme() {
    let readme = Text::read("README.md").text;
    let mut examples = Vec::new();
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
            examples.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    assert!(!examples.is_empty(), "no examples were found");
    examples.retain(|example| !readme.contains(&format!("\n| `{example}` |")));
    assert_eq!(examples, [""; 0], "examples that README.md does not list");
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    // Put together here, so that this file is not the first find.
    let everywhere =
        [["/wo", "rk/"], ["/wo", "rk-"], ["/ro", "ot/"], ["/ho", "me/"]].map(|parts| parts.concat());
    let in_sources = [["/t", "mp/"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for path in tree() {
        // What is not text names no paths to a reader.
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        let is_source = path.starts_with("src/") || path.starts_with("examples/") || path.ends_with(".md");
        for (number, line) in text.lines().enumerate() {
            let names = everywhere.iter().chain(in_sources.iter().filter(|_| is_source));
            for name in names.filter(|name| line.contains(name.as_str())) {
                found.push(format!("{path}:{}: {name}", number + 1));
            }
        }
    }
    assert_eq!(found, [""; 0], "paths of one machine");
}

#[test]
fn unsafe_code_stays_in_its_rooms_and_says_why_it_is_sound() {
    let mut blocks = 0;
    let mut outside = Vec::new();
    let mut unexplained = Vec::new();
    for source in sources() {
        let is_room = source.path.starts_with("src/task/") || source.path.starts_with("src/shared/");
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = code(line);
            // The one attribute that has the word in it: running before `main` is a promise to the linker.
            let is_constructor = source.path == "src/init.rs" && code.trim() == "#[ctor::ctor(unsafe)]";
            if !has_word(&code, "unsafe") || is_constructor {
                continue;
            }
            if !is_room {
                outside.push(source.at(number));
            }
            // A block of declarations has nothing to be sound about; its users do.
            if code.contains("unsafe extern") {
                continue;
            }
            blocks += 1;
            let explained = comments_above(&lines, number)
                .iter()
                .any(|comment| comment.trim_start().starts_with("// SAFETY: "));
            if !explained {
                unexplained.push(source.at(number));
            }
        }
    }
    assert!(blocks > 5, "only {blocks} unsafe blocks were found");
    assert_eq!(outside, [""; 0], "unsafe code outside of src/task and src/shared");
    assert_eq!(unexplained, [""; 0], "unsafe blocks without `// SAFETY:`");
}

#[test]
fn the_root_of_the_library_has_no_logic() {
    let root = Text::read("src/lib.rs");
    let mut in_list = false;
    let mut logic = Vec::new();
    for (number, line) in root.text.lines().enumerate() {
        let line = code(line);
        let line = line.trim();
        let is_declaration = line.is_empty()
            || is_attribute(line)
            || line.starts_with("#![")
            || line.starts_with("compile_error!(")
            || ["mod ", "pub mod ", "use ", "pub use ", "struct "]
                .iter()
                .any(|start| line.starts_with(start));
        if !(is_declaration || in_list) || line.contains('(') && !line.starts_with(['#', 'c']) {
            logic.push(root.at(number));
        }
        // The names of one `use`, over several lines.
        in_list = match line.chars().last() {
            Some('{') => line.contains("use "),
            Some(';') => false,
            _ => in_list,
        };
    }
    assert_eq!(
        logic, [""; 0],
        "lines of src/lib.rs that declare and re-export nothing"
    );
}
