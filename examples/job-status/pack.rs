//! What a job does: feeds a child process and reads what it makes of it.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use airwave::Channel;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

/// Why a job failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a job may run, and how hard it tries.
pub const TOOLS: [(&str, &str); 6] = [
    ("gzip", "-1"),
    ("gzip", "-9"),
    ("bzip2", "-9"),
    ("xz", "-1"),
    ("xz", "-6"),
    ("zstd", "-3"),
];

const MOST_BYTES: u64 = 24_000_000;

/// One at a time: the others are seen to wait.
static TURN: Semaphore = Semaphore::const_new(1);

/// Compresses, unpacks and compares, and tells the channel how it gets on.
pub async fn run(channel: &Channel, tool: &str, level: &str) -> Result<Value, Failure> {
    channel.publish("queued", &json!({"tool": format!("{tool} {level}")})).await?;
    let _turn = TURN.acquire().await?;
    let original = tokio::task::spawn_blocking(read_program).await??;
    let began = Instant::now();
    channel.publish("started", &json!({"bytes": original.len()})).await?;
    let packed = through(
        channel,
        "compressing",
        spawn(tool, &[level, "-c"])?,
        &original,
        original.len(),
    )
    .await?;
    let unpacked = through(channel, "verifying", spawn(tool, &["-d", "-c"])?, &packed, original.len()).await?;
    if unpacked != original {
        return Err("what was unpacked is not what was packed".into());
    }
    let ratio = packed.len() as f64 / original.len().max(1) as f64;
    Ok(
        json!({"is": "done", "bytes": original.len(), "packed": packed.len(), "ratio": ratio, "seconds": began.elapsed().as_secs_f64()}),
    )
}

/// The first bytes of this program: a real file that every machine has.
fn read_program() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(std::env::current_exe()?)?
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A child process that reads what it is fed. It is killed when it is dropped.
fn spawn(tool: &str, flags: &[&str]) -> std::io::Result<Child> {
    let mut command = Command::new(tool);
    command
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// Feeds `input` to the child and returns what it says, telling how far it is every time another
/// hundredth is done.
async fn through(channel: &Channel, step: &str, mut child: Child, input: &[u8], most: usize) -> Result<Vec<u8>, Failure> {
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the child has no pipes".into());
    };
    let feed = async {
        let mut told = Instant::now();
        for (i, part) in input.chunks(64 << 10).enumerate() {
            to.write_all(part).await?;
            if told.elapsed() > Duration::from_millis(100) {
                told = Instant::now();
                let done = (i * (64 << 10) + part.len()) as f64 / input.len() as f64;
                channel.publish("progress", &json!({"step": step, "done": done})).await?;
            }
        }
        drop(to);
        Ok::<_, Failure>(())
    };
    let mut output = Vec::new();
    // No tool makes more of it than it was, but for a few bytes.
    let mut bounded = from.take(most as u64 + (1 << 20));
    let (fed, read) = tokio::join!(feed, bounded.read_to_end(&mut output));
    fed?;
    read?;
    channel.publish("progress", &json!({"step": step, "done": 1})).await?;
    match child.wait().await? {
        status if status.success() => Ok(output),
        status => Err(format!("the child process ended with {status}").into()),
    }
}
