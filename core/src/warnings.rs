//! Clients can cause these warnings, so each cause writes at most a few lines a minute.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::address::AddressKey;

/// Each cause counts its lines within this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Bounds the lines of one cause in that time; each address has at most one line.
const LINES: usize = 10;
/// Bounds the characters that a line shows of a client's text.
const DETAIL: usize = 100;

/// An operator wants to know of this event, although a client causes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A page comes from an origin that is not allowed. The detail is the origin.
    RefusedOrigin,
    /// A client shows no token, or a wrong one. The detail names the target of its request.
    WrongToken,
    /// The node cuts a connection whose write made no progress for too long.
    StalledWrite,
}

impl Warning {
    const ALL: [Warning; 3] = [Warning::RefusedOrigin, Warning::WrongToken, Warning::StalledWrite];

    /// Returns the cause as the log writes it.
    fn cause(self) -> &'static str {
        match self {
            Warning::RefusedOrigin => "origin",
            Warning::WrongToken => "unauthorized",
            Warning::StalledWrite => "stalled",
        }
    }

    fn log(self, address: Option<IpAddr>, detail: &str) {
        let cause = self.cause();
        // A client chooses the detail, so the line quotes it. The detail can neither end the line
        // nor look like a field.
        let detail: String = detail.chars().take(DETAIL).collect();
        let address = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        match self {
            Warning::RefusedOrigin => tracing::warn!(
                cause,
                address,
                origin = ?detail,
                "refused a page of an origin that is not allowed: if it is yours, add it to 'origins' in the configuration, for example origins = [\"https://app.example\"]"
            ),
            Warning::WrongToken => tracing::warn!(
                cause,
                address,
                request = ?detail,
                "refused a client without a token, or with a wrong one"
            ),
            Warning::StalledWrite => tracing::warn!(
                cause,
                address,
                "cut a connection that took nothing for limits.stalled_write: its client has gone or reads too slowly"
            ),
        }
    }
}

/// Each cause has a window here, with the addresses of its lines.
#[derive(Debug, Default)]
pub(crate) struct Warnings([Mutex<WarningWindow>; Warning::ALL.len()]);

#[derive(Debug, Default)]
struct WarningWindow {
    since: Option<Instant>,
    addresses: Vec<Option<AddressKey>>,
    left_out: u64,
}

impl WarningWindow {
    /// Returns whether the log gets this line.
    fn admits(&mut self, address: Option<AddressKey>, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let admits = self.addresses.len() < LINES && !self.addresses.contains(&address);
        if admits {
            self.addresses.push(address);
        } else {
            self.left_out += 1;
        }
        admits
    }

    /// Ends a window that is over, and returns how many lines it left out.
    fn end(&mut self, now: Instant) -> u64 {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) < WINDOW) {
            return 0;
        }
        std::mem::take(self).left_out
    }
}

impl Warnings {
    /// Writes a line, unless the cause or its address has enough lines within a minute.
    pub(crate) fn warn(&self, warning: Warning, address: Option<IpAddr>, detail: &str) {
        let now = Instant::now();
        self.sum_up(warning, now);
        if self.window(warning).admits(address.map(Into::into), now) {
            warning.log(address, detail);
        }
    }

    /// Writes how many lines the windows that are over left out. The node calls this about once a
    /// second.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for warning in Warning::ALL {
            self.sum_up(warning, now);
        }
    }

    fn sum_up(&self, warning: Warning, now: Instant) {
        let left_out = self.window(warning).end(now);
        if left_out > 0 {
            tracing::warn!(cause = warning.cause(), count = left_out, "more of the same within a minute");
        }
    }

    fn window(&self, warning: Warning) -> MutexGuard<'_, WarningWindow> {
        // The windows stand in the order of `Warning::ALL`.
        self.0[warning as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_has_one_line_in_a_minute_and_each_cause_a_few() {
        let mut window = WarningWindow::default();
        let key = |n: u8| Some(AddressKey::from(IpAddr::from([10, 0, 0, n])));
        let start = Instant::now();
        let mut written = |address, now| window.admits(address, now);
        assert!(written(key(1), start));
        assert!(!written(key(1), start));
        let admitted = (2..200).filter(|n| written(key(*n), start)).count();
        assert_eq!(admitted, LINES - 1);
        assert_eq!(window.end(start + WINDOW / 2), 0);
        assert_eq!(window.end(start + WINDOW), 190);
        assert!(window.admits(key(1), start + WINDOW));
        assert_eq!(window.addresses.len(), 1);
    }

    #[test]
    fn each_cause_has_a_window_of_its_own() {
        for (index, warning) in Warning::ALL.into_iter().enumerate() {
            assert_eq!(warning as usize, index);
        }
    }
}
