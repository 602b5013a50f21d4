//! Measures the game: players who steer and spectators who only watch, each on a WebSocket of its
//! own, on this machine. `cargo build --release --example game && cargo run --release --example
//! game-load -- 50 200 10`
//!
//! It starts the `game` that was built beside it, and reads its processor time from /proc, so it
//! wants Linux.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a player steers: about as often as a hand changes its mind.
const STEERING: Duration = Duration::from_millis(100);
/// The load counts how often this player moves. It is a bot, which is always there.
const ONE_PLAYER: &[u8] = br#""key":"@0""#;
/// All connections are open for so long before it counts.
const WARM_UP: Duration = Duration::from_secs(2);

static COUNTS: AtomicBool = AtomicBool::new(false);
static ENDS: AtomicBool = AtomicBool::new(false);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default, Clone, Copy)]
struct Seen {
    states: u64,
    of_one: u64,
    bytes: u64,
}

/// Does not outlive this program.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let mut word = |usual| words.next().unwrap_or(Ok(usual));
    let (players, spectators, seconds) = (word(50)?, word(200)?, word(10)?);
    let mut server = Server(
        Command::new(std::env::current_exe()?.with_file_name("game"))
            .env("AIRWAVE_LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().ok_or("the game has no output")?).read_line(&mut line)?;
    let address = line.split('/').nth(2).ok_or("the game does not say where it is")?.to_owned();

    let clients: Vec<_> = (0..players + spectators)
        .map(|n| {
            let address = address.clone();
            std::thread::spawn(move || client(&address, n, n < players))
        })
        .collect();
    std::thread::sleep(WARM_UP);
    let cpu = cpu_seconds(server.0.id())?;
    let began = Instant::now();
    COUNTS.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(seconds));
    COUNTS.store(false, Ordering::Relaxed);
    let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(server.0.id())? - cpu);
    let own = cpu_seconds(std::process::id())?;
    ENDS.store(true, Ordering::Relaxed);

    let mut seen = Vec::new();
    for client in clients {
        seen.push(client.join().map_err(|_| "a client panicked")??);
    }
    drop(server);
    let mut rates: Vec<f64> = seen.iter().map(|seen| seen.of_one as f64 / took).collect();
    rates.sort_by(f64::total_cmp);
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>() as f64 / took;
    println!("{players} players, {spectators} spectators, {took:.1} s");
    println!(
        "updates per second of one player, by client: least {:.1}, median {:.1}, most {:.1}",
        rates[0],
        rates[rates.len() / 2],
        rates[rates.len() - 1]
    );
    println!(
        "states per second: {:.0} in all, {:.1} MB/s",
        sum(|seen| seen.states),
        sum(|seen| seen.bytes) / 1e6
    );
    println!(
        "server: {:.0} % of a core; the load itself: {own:.1} s of processor time in all",
        100.0 * cpu / took
    );
    Ok(())
}

/// One connection: reads what comes, as fast as it can, and counts while it is told to.
fn client(address: &str, n: u64, plays: bool) -> Result<Seen, Failure> {
    let mut stream = TcpStream::connect(address)?;
    let who = if plays {
        format!("Authorization: Bearer load{n:05}\r\n")
    } else {
        String::new()
    };
    write!(
        stream,
        "GET /channels/game/arena HTTP/1.1\r\nHost: {address}\r\n{who}Connection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    if plays {
        send(&mut stream, "enter", &format!("{{\"name\":\"Load {n}\"}}"))?;
    }
    stream.set_read_timeout(Some(STEERING))?;
    let (mut buffer, mut filled, mut upgraded) = (vec![0; 256 << 10], 0, false);
    let (mut seen, mut steered, mut angle) = (Seen::default(), Instant::now(), n as f64);
    while !ENDS.load(Ordering::Relaxed) {
        if plays && steered.elapsed() >= STEERING {
            steered = Instant::now();
            angle += 0.3;
            send(
                &mut stream,
                "steer",
                &format!("{{\"x\":{:.2},\"y\":{:.2}}}", angle.cos(), angle.sin()),
            )?;
        }
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(read) => filled += read,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut at = 0;
        if !upgraded {
            let Some(end) = find(&buffer[..filled], b"\r\n\r\n") else {
                continue;
            };
            upgraded = true;
            at = end + 4;
        }
        while let Some((payload, end)) = frame(&buffer[at..filled]) {
            if COUNTS.load(Ordering::Relaxed) {
                // The key stands before the data, within so many bytes.
                let start = &buffer[at + payload..at + end.min(payload + 120)];
                seen.states += 1;
                seen.bytes += end as u64;
                seen.of_one += u64::from(find(start, ONE_PLAYER).is_some());
            }
            at += end;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
    Ok(seen)
}

/// Where the first frame's payload begins and ends, once all of it is there. A server's frames are
/// not masked.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let (head, length) = match *bytes.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
        ),
        short => (2, usize::from(short)),
    };
    (bytes.len() >= head + length).then_some((head, head + length))
}

/// A frame of our own, under a mask of zeros, which changes nothing.
fn send(stream: &mut TcpStream, event: &str, data: &str) -> std::io::Result<()> {
    let text = format!("{{\"type\":\"send\",\"channel\":\"game/arena\",\"event\":\"{event}\",\"data\":{data}}}");
    // Shorter than 126 bytes, whatever is sent here.
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    stream.write_all(&frame)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// The processor time of a process so far: fields 14 and 15 of its stat, in hundredths of a second
/// on every usual Linux.
fn cpu_seconds(process: u32) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit(')').next().ok_or("no stat")?.split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}
