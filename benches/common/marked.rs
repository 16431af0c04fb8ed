//! Texts of which a program writes a part: what lies between two marks.

use std::fs;
use std::path::Path;

use crate::Error;

fn marks(name: &str) -> (String, String) {
    (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"))
}

fn marked(name: &str, part: &str) -> String {
    let (begin, end) = marks(name);
    format!("{begin}\n{part}{end}")
}

/// What the text has between the marks of that name.
fn part<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (begin, end) = marks(name);
    let (_, rest) = text.split_once(&begin)?;
    let (part, _) = rest.split_once(&end)?;
    Some(part.trim_start())
}

/// The text with another part between the marks.
pub(crate) fn replaced(text: &str, name: &str, part: &str) -> Result<String, Error> {
    let (begin, end) = marks(name);
    let missing = || format!("the text has no {begin} with {end} behind it");
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(format!("{before}{}{after}", marked(name, part)))
}

/// Writes a page of sections, one of them anew; the others are as they were, or empty.
pub(crate) fn write_section<'a>(
    page: &Path,
    head: &str,
    names: impl IntoIterator<Item = &'a str>,
    (name, section): (&str, &str),
) -> Result<(), Error> {
    // The first section makes the page.
    let before = fs::read_to_string(page).unwrap_or_default();
    let mut text = head.to_owned();
    for known in names {
        let section = if known == name {
            section
        } else {
            part(&before, known).unwrap_or_default()
        };
        text += &format!("\n{}\n", marked(known, section));
    }
    fs::write(page, text)?;
    Ok(())
}
