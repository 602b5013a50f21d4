//! A line between a broker and its server that can be broken without being closed.

#![allow(dead_code)] // each test file uses a part

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Stands between a broker and its server, and can break the line without closing it. Ends with the
/// test's process.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Line>,
}

#[derive(Default)]
struct Line {
    swallow: AtomicBool,
    /// The number of the one connection that is swallowed, plus one.
    swallow_one: AtomicU64,
    refuse: AtomicBool,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
    /// How long everything is under way, in each direction, in ms.
    delay: AtomicU64,
    /// How many bytes pass in a second in each direction of each connection; zero: all at once.
    pace: AtomicU64,
}

/// Bytes under way, and when they arrive.
type UnderWay = (Instant, Vec<u8>);

impl Line {
    /// Takes in what comes on a connection, unless it is swallowed.
    fn take(&self, number: u64, from: &mut TcpStream, under_way: &Sender<UnderWay>) {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let one = self.swallow_one.load(Ordering::SeqCst) == number + 1;
            let due = Instant::now() + Duration::from_millis(self.delay.load(Ordering::SeqCst));
            let swallowed = one || self.swallow.load(Ordering::SeqCst);
            if !swallowed && under_way.send((due, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    }

    /// Gives it on when it is due, no faster than the pace.
    fn give(&self, arriving: &Receiver<UnderWay>, to: &mut TcpStream) {
        let mut free = Instant::now();
        let mut write = |bytes: &[u8]| {
            bytes.chunks(4096).try_for_each(|piece| {
                if let pace @ 1.. = self.pace.load(Ordering::SeqCst) {
                    free = free.max(Instant::now() - Duration::from_millis(100));
                    free += Duration::from_micros(piece.len() as u64 * 1_000_000 / pace);
                    std::thread::sleep(free.saturating_duration_since(Instant::now()));
                }
                to.write_all(piece)
            })
        };
        while let Ok((due, bytes)) = arriving.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if write(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}

impl Proxy {
    pub fn to(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Line::default());
        let line = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let number = line.connections.fetch_add(1, Ordering::SeqCst);
                if line.refuse.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                line.open
                    .lock()
                    .unwrap()
                    .extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    let (under_way, arriving) = channel();
                    let (takes, gives) = (line.clone(), line.clone());
                    std::thread::spawn(move || gives.give(&arriving, &mut to));
                    std::thread::spawn(move || takes.take(number, &mut from, &under_way));
                }
            }
        });
        Proxy { port, shared }
    }

    /// Takes everything in and passes nothing on.
    pub fn swallow(&self, swallow: bool) {
        self.shared.swallow.store(swallow, Ordering::SeqCst);
    }

    /// The same for one connection, counted from zero.
    pub fn swallow_one(&self, number: u64) {
        self.shared.swallow_one.store(number + 1, Ordering::SeqCst);
    }

    /// From now on everything takes so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.shared.delay.store(delay, Ordering::SeqCst);
    }

    /// From now on so many bytes pass in a second, in each direction of each connection.
    pub fn pace(&self, bytes: u64) {
        self.shared.pace.store(bytes, Ordering::SeqCst);
    }

    /// Drops every connection, and new ones at once.
    pub fn refuse(&self) {
        self.shared.refuse.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}
