//! A made-up author, who writes in a folder made for the purpose while the feed has a reader.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use airwave::Airwave;

const PACE: Duration = Duration::from_secs(4);

/// What the author does, over and over: the same few files, so that the folder does not grow.
const DAY: &[(&str, &str)] = &[
    ("harbour/tides.txt", "High water at six, low water at noon.\n"),
    ("harbour/ferries.txt", "The eight o'clock ferry is late.\n"),
    ("", "Note the tides of today"),
    ("letters/draft.txt", "Dear all, the mast is up.\n"),
    ("harbour/ferries.txt", ""),
    ("letters/draft.txt", "Dear all, the mast is up. The wind is not.\n"),
    ("", "Answer the letters"),
    ("letters/draft.txt", ""),
];

/// The folder, empty but for git's own notes, in which the first entry stands.
pub fn begin() -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("airwave-feed-{}", std::process::id()));
    // Of an earlier process of this number.
    let _ = std::fs::remove_dir_all(&folder);
    for inside in ["harbour", "letters", ".git/logs"] {
        std::fs::create_dir_all(folder.join(inside))?;
    }
    commit(&folder, 0, "Begin the harbour's notes")?;
    Ok(folder)
}

/// Writes for ever, while the feed has a listener.
pub async fn write(folder: PathBuf, airwave: Airwave) {
    for n in 1.. {
        tokio::time::sleep(PACE).await;
        while !is_read(&airwave) {
            tokio::time::sleep(PACE).await;
        }
        let (name, text) = DAY[n % DAY.len()];
        let path = folder.join(name);
        let done = match (name, text) {
            ("", message) => commit(&folder, n, message),
            (_, "") => std::fs::remove_file(path),
            (_, text) => std::fs::write(path, text),
        };
        if let Err(error) = done {
            // The system may clear its temporary files.
            tracing::warn!(%error, "the feed's author stops");
            return;
        }
    }
}

fn is_read(airwave: &Airwave) -> bool {
    let channels = airwave.hub().channels(10_000);
    let own = channels.iter().find(|channel| channel.name.as_str() == "feed/activity");
    own.is_some_and(|channel| channel.listeners.iter().any(|(_, count)| *count > 0))
}

/// Notes a commit as git does. Every so many the notes begin anew, so that they stay short.
fn commit(folder: &Path, n: usize, message: &str) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!(
        "{:040x} {:032x}c0ffee00 Ada <ada@harbour.example> {} +0000\tcommit: {message}\n",
        n,
        // As good a hash as any: different each time.
        since.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
        since.as_secs()
    );
    let begin = n.is_multiple_of(20 * DAY.len());
    let mut log = OpenOptions::new()
        .create(true)
        .write(true)
        .append(!begin)
        .truncate(begin)
        .open(folder.join(".git/logs/HEAD"))?;
    log.write_all(line.as_bytes())
}
