//! A folder: what of it is watched, what has changed in it, and what git notes about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::mpsc;

/// More changes at once than so many are told as one.
const MOST_AT_ONCE: usize = 30;
/// Editors write a file in several steps, which are one change.
const CALM: Duration = Duration::from_millis(400);

/// A folder with more than so many is watched in part.
const MOST_FOLDERS: usize = 500;

/// Something that happened.
pub enum News {
    /// One of the last commits; it may have been told of before.
    Commit(Commit),
    File(File),
    /// So many files at once.
    Files(usize),
}

#[derive(Serialize)]
pub struct File {
    path: String,
    is: &'static str,
    bytes: Option<u64>,
}

/// A folder that is watched.
pub struct Folder {
    path: PathBuf,
    git_log: Option<PathBuf>,
    watcher: RecommendedWatcher,
    folders: usize,
    heard: mpsc::Receiver<Event>,
    /// What has changed since it was asked, and whether it was created then.
    changed: BTreeMap<PathBuf, bool>,
}

impl Folder {
    /// From now on what changes there is noted.
    pub fn watch(path: &Path) -> Result<Self, super::Failure> {
        let path = path.canonicalize()?;
        let (tell, heard) = mpsc::channel::<Event>(1024);
        // What does not fit is left out: a file that changed a thousand times has changed.
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<Event>| drop(event.map(|event| tell.try_send(event))))?;
        let mut folders = 0;
        add_folders(&mut watcher, &path, &mut folders);
        let git_log = git_log(&path);
        if let Some(logs) = git_log.as_deref().and_then(Path::parent) {
            watcher.watch(logs, RecursiveMode::NonRecursive)?;
        }
        Ok(Self {
            path,
            git_log,
            watcher,
            folders,
            heard,
            changed: BTreeMap::new(),
        })
    }

    /// Waits until something has changed, and then for a moment of calm.
    pub async fn changed(&mut self) {
        // The watcher, which says it, lives as long as this.
        let mut next = self.heard.recv().await;
        tokio::time::sleep(CALM).await;
        while let Some(event) = next {
            let created = matches!(event.kind, EventKind::Create(_));
            if !matches!(event.kind, EventKind::Access(_)) {
                for path in event.paths {
                    *self.changed.entry(path).or_default() |= created;
                }
            }
            next = self.heard.try_recv().ok();
        }
    }

    /// The last commits, and what has changed since this was last asked.
    pub fn news(&mut self) -> Vec<News> {
        let mut news: Vec<News> = self.git_log.as_deref().map(commits).unwrap_or_default();
        let changed = std::mem::take(&mut self.changed);
        let files: Vec<(PathBuf, bool)> = changed.into_iter().filter(|(path, _)| shown(&self.path, path)).collect();
        if files.len() > MOST_AT_ONCE {
            news.push(News::Files(files.len()));
            return news;
        }
        news.extend(files.iter().filter_map(|(path, created)| self.file(path, *created)));
        news
    }

    fn file(&mut self, path: &Path, created: bool) -> Option<News> {
        let about = path.symlink_metadata();
        if created && about.as_ref().is_ok_and(|about| about.is_dir()) {
            add_folders(&mut self.watcher, path, &mut self.folders);
        }
        let is = match (&about, created) {
            (Err(_), true) => return None,
            (Err(_), false) => "removed",
            (Ok(_), true) => "created",
            (Ok(_), false) => "changed",
        };
        Some(News::File(File {
            path: path.strip_prefix(&self.path).unwrap_or(path).to_string_lossy().into_owned(),
            is,
            bytes: about.ok().filter(|about| about.is_file()).map(|about| about.len()),
        }))
    }
}

/// The folder and those in it, without what is built, fetched or hidden.
fn add_folders(watcher: &mut RecommendedWatcher, folder: &Path, count: &mut usize) {
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
fn shown(folder: &Path, path: &Path) -> bool {
    let inside = path.strip_prefix(folder);
    inside.is_ok_and(|path| path.components().next().is_some() && path.iter().all(|name| is_shown(&name.to_string_lossy())))
}

/// Where git notes what HEAD was: in the folder, or where the `.git` file of a worktree says.
fn git_log(folder: &Path) -> Option<PathBuf> {
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

/// The last commits in the log, oldest first. Its lines: `OLD NEW NAME <MAIL> SECONDS ZONE\tcommit:
/// MESSAGE`.
fn commits(log: &Path) -> Vec<News> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(20));
    last.filter_map(|line| commit(line).map(News::Commit)).collect()
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
