//! A folder: what of it is watched, and what git notes about it.

use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;

/// A folder with more than so many is watched in part.
const MOST_FOLDERS: usize = 500;

/// The folder and those in it, without what is built, fetched or hidden.
pub fn add_folders(watcher: &mut RecommendedWatcher, folder: &Path, count: &mut usize) {
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        *count += 1;
        // One that went away, or must not be read, is no reason not to watch the others.
        if *count > MOST_FOLDERS || watcher.watch(&folder, RecursiveMode::NonRecursive).is_err() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_shown(&entry.file_name().to_string_lossy()) {
                todo.push(entry.path());
            }
        }
    }
}

fn is_shown(name: &str) -> bool {
    !name.starts_with('.') && !name.ends_with('~') && name != "target" && name != "node_modules"
}

/// Whether it is in the folder, and nothing built, fetched or hidden.
pub fn shown(folder: &Path, path: &Path) -> bool {
    let inside = path.strip_prefix(folder);
    inside.is_ok_and(|path| path.components().next().is_some() && path.iter().all(|name| is_shown(&name.to_string_lossy())))
}

/// Where git notes what HEAD was: in the folder, or where the `.git` file of a worktree says.
pub fn git_log(folder: &Path) -> Option<PathBuf> {
    let git = folder.join(".git");
    let git = match std::fs::read_to_string(&git) {
        Ok(text) => folder.join(text.trim().strip_prefix("gitdir: ")?),
        Err(_) => git,
    };
    Some(git.join("logs/HEAD")).filter(|log| log.is_file())
}

#[derive(Serialize)]
pub struct Commit {
    pub hash: String,
    author: String,
    message: String,
    /// Seconds since 1970.
    at: Option<u64>,
}

/// The last commits in the log, oldest first. Its lines: `OLD NEW NAME <MAIL> SECONDS ZONE\tcommit: MESSAGE`.
pub fn commits(log: &Path) -> Vec<Commit> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(20));
    last.filter_map(|line| commit(line)).collect()
}

fn commit(line: &str) -> Option<Commit> {
    let (who, message) = line.split_once('\t')?;
    let mut words = who.split(' ').skip(1);
    let hash = words.next()?.to_owned();
    let author: Vec<&str> = words.take_while(|word| !word.starts_with('<')).collect();
    let message = message.strip_prefix("commit")?.split_once(": ")?.1.to_owned();
    let at = who.rsplit(' ').nth(1).and_then(|text| text.parse().ok());
    Some(Commit {
        hash,
        author: author.join(" "),
        message,
        at,
    })
}
