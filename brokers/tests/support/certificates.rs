//! Certificates for tests, made by openssl: two authorities, and a server's for 127.0.0.1 alone, of
//! the first.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// In a folder that goes with it.
pub struct Certificates(PathBuf);

impl Certificates {
    /// `None`, after saying so: there is no openssl.
    pub fn make() -> Option<Certificates> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("airwave-certificates-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let made = Certificates(dir);
        let dir = &made.0;
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for name in ["authority", "other"] {
            let made = format!("req -x509 {key} -keyout {name}.key -out {name}.crt -days 2 -subj /CN={name}");
            if !openssl(dir, &made) {
                return None;
            }
        }
        std::fs::write(dir.join("for"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
        openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
        let sign = "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial -days 2 -extfile for -out server.crt";
        openssl(dir, sign);
        Some(made)
    }

    /// `authority.crt`, `other.crt`, `server.crt`, `server.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// False, after saying so: there is no openssl.
fn openssl(dir: &Path, arguments: &str) -> bool {
    let mut command = Command::new("openssl");
    let command = command.args(arguments.split(' ')).current_dir(dir);
    match command.stdin(Stdio::null()).output() {
        Ok(done) => {
            assert!(
                done.status.success(),
                "{arguments}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
            true
        }
        Err(error) => {
            let missing = format!("there is no openssl: {error}");
            assert!(
                std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
                "{missing}"
            );
            eprintln!("skipped: {missing}");
            false
        }
    }
}
