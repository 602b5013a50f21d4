use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Server, free_port};

/// A server with a certificate for 127.0.0.1 alone, the authority that it is of, and another one.
pub struct Secured {
    pub server: Server,
    pub port: u16,
    pub authority: PathBuf,
    pub other_authority: PathBuf,
    _certificates: Folder,
}

struct Folder(PathBuf);

impl Drop for Folder {
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

impl Secured {
    pub fn start() -> Option<Secured> {
        let dir = std::env::temp_dir().join(format!("airwave-certificates-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let folder = Folder(dir.clone());
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for name in ["authority", "other"] {
            let made = format!("req -x509 {key} -keyout {name}.key -out {name}.crt -days 2 -subj /CN={name}");
            if !openssl(&dir, &made) {
                return None;
            }
        }
        std::fs::write(dir.join("for"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
        openssl(
            &dir,
            &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"),
        );
        let sign = "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial -days 2 -extfile for -out server.crt";
        openssl(&dir, sign);
        let port = free_port();
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let server = Server::start(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &path("server.crt"),
            "--tls-key-file",
            &path("server.key"),
            "--tls-ca-cert-file",
            &path("authority.crt"),
            "--tls-auth-clients",
            "no",
        ])?;
        Some(Secured {
            server,
            port,
            authority: dir.join("authority.crt"),
            other_authority: dir.join("other.crt"),
            _certificates: folder,
        })
    }
}
