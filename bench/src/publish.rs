//! Publishers: each a thread with one keep-alive connection that sends `POST /publish` as a backend
//! would.
//!
//! They are threads beside the listeners' so that a listener thread that is busy reading does not
//! delay what it measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use crate::check::Histogram;
use crate::load::{channel_name, now};
use crate::wire::Stamp;

/// What a publisher is told to do.
#[derive(Debug, Clone, Copy)]
pub enum Job {
    /// So many requests with so many events each, one after the other without a pause.
    BackToBack { requests: u64, events: usize },
    /// So many events, one a request, at this many a second. A late answer does not thin out the
    /// rest: what is overdue goes out at once and carries the time at which it was due.
    Paced { events: u64, per_second: f64 },
}

/// A running publisher. Its thread ends after this is dropped, with its job or with the server.
pub struct Publisher {
    jobs: Sender<Job>,
    results: Receiver<Result<Histogram, String>>,
}

impl Publisher {
    /// Connects to the server. It publishes to `channels` in turn; `counts[c]` is the number of
    /// events on channel `c`, so no two publishers may share a channel. `size`: bytes of each
    /// event's data.
    pub fn start(address: SocketAddr, channels: Vec<u32>, counts: Arc<[AtomicU64]>, size: usize) -> Result<Self, String> {
        let stream = TcpStream::connect(address).map_err(|error| format!("a publisher cannot connect to {address}: {error}"))?;
        let prepare = || {
            stream.set_nodelay(true)?;
            // A server that is stuck ends the run instead of hanging it.
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.try_clone()
        };
        let reader = prepare().map_err(|error| format!("cannot set up a publisher's socket: {error}"))?;
        let mut connection = Connection {
            stream,
            reader: BufReader::new(reader),
            address,
            channels,
            turn: 0,
            counts,
            size,
            body: String::new(),
        };
        let (jobs, todo) = channel();
        let (done, results) = channel();
        std::thread::spawn(move || {
            for job in todo {
                if done.send(connection.run(job)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { jobs, results })
    }

    /// Begins a job.
    pub fn begin(&self, job: Job) {
        // A thread that is gone says so in `finished`.
        let _ = self.jobs.send(job);
    }

    /// How long the job's requests took to be answered, once it is done.
    pub fn finished(&self) -> Option<Result<Histogram, String>> {
        match self.results.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("a publisher's thread is gone".into())),
        }
    }
}

struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    address: SocketAddr,
    channels: Vec<u32>,
    turn: usize,
    counts: Arc<[AtomicU64]>,
    size: usize,
    body: String,
}

impl Connection {
    fn run(&mut self, job: Job) -> Result<Histogram, String> {
        let mut round_trips = Histogram::default();
        match job {
            Job::BackToBack { requests, events } => {
                for _ in 0..requests {
                    round_trips.record(self.publish(events, now())?);
                }
            }
            Job::Paced { events, per_second } => {
                let begin = now();
                let mut answered = begin;
                for event in 0..events {
                    let due = begin + (event as f64 * 1e9 / per_second) as u64;
                    let wait = due.saturating_sub(now());
                    if wait > 0 {
                        std::thread::sleep(Duration::from_nanos(wait));
                    }
                    // Late because the server had not answered: its fault, counted from when it was
                    // due. Late because this thread overslept: not its fault.
                    let stamp = if answered > due { due } else { now() };
                    round_trips.record(self.publish(1, stamp)?);
                    answered = now();
                }
            }
        }
        Ok(round_trips)
    }

    /// Publishes `events` events in one request; how long the answer took, in nanoseconds.
    fn publish(&mut self, events: usize, stamp: u64) -> Result<u64, String> {
        self.body.clear();
        if events != 1 {
            self.body.push('[');
        }
        for event in 0..events {
            let c = self.channels[self.turn];
            self.turn = (self.turn + 1) % self.channels.len();
            let n = self.counts[c as usize].fetch_add(1, Ordering::Relaxed) + 1;
            let data = Stamp { n, c, t: stamp }.to_json(self.size);
            let comma = if event > 0 { "," } else { "" };
            let channel = channel_name(c);
            self.body.push_str(&format!(
                "{comma}{{\"channel\":\"{channel}\",\"event\":\"tick\",\"data\":{data}}}"
            ));
        }
        if events != 1 {
            self.body.push(']');
        }
        let request = format!(
            "POST /publish HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.address,
            self.body.len(),
            self.body
        );
        let sent = now();
        self.stream
            .write_all(request.as_bytes())
            .map_err(|error| format!("cannot publish: {error}"))?;
        let (status, answer) = self.answer().map_err(|error| format!("no answer to a publish: {error}"))?;
        if status != 200 {
            return Err(format!(
                "a publish was answered {status}: {}",
                answer.chars().take(400).collect::<String>()
            ));
        }
        Ok(now() - sent)
    }

    fn answer(&mut self) -> std::io::Result<(u16, String)> {
        let mut line = String::new();
        let mut read_line = |reader: &mut BufReader<TcpStream>| -> std::io::Result<String> {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("the server closed the connection"));
            }
            Ok(line.trim_end().to_owned())
        };
        let first = read_line(&mut self.reader)?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("not an HTTP response: {first:?}")))?;
        let (mut length, mut chunked) = (0_usize, false);
        loop {
            let header = read_line(&mut self.reader)?.to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(("transfer-encoding", _)) => chunked = true,
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(&read_line(&mut self.reader)?, 16)
                    .map_err(|_| std::io::Error::other("a chunk size that is no hexadecimal number"))?;
                self.reader.by_ref().take(size as u64).read_to_end(&mut body)?;
                read_line(&mut self.reader)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.reader.by_ref().take(length as u64).read_to_end(&mut body)?;
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
