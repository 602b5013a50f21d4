//! What the examples share and is not about their channels: a page's files, who comes, and the way
//! in.

use std::net::SocketAddr;

use airwave::{Airwave, ConnectRequest, Identity, Refusal};
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;

/// The page of an example in the folder `at` (`/chat/`), with what all pages use beside it.
pub fn page(at: &str, files: &[(&str, &'static str)]) -> Router {
    let frame = [
        ("frame.js", include_str!("frame.js")),
        ("style.css", include_str!("style.css")),
    ];
    airwave::pages(at, &[files, &frame].concat())
}

/// An example alone: its page, to which `/` leads, and Airwave's routes. The guard keeps pages of
/// other sites out, because an example lets every client in.
pub fn alone(airwave: &Airwave, page: Router, at: &'static str) -> Router {
    let front = Router::new().route("/", get(async move || Redirect::temporary(at)));
    airwave::local_only(front.merge(page).merge(airwave.router()))
}

/// Says where to look.
pub fn say(at: &str) -> impl FnOnce(SocketAddr) {
    move |address| println!("open http://{address}{at}")
}

/// Takes the user name that the client gives, without a check. An application checks a real token
/// here. A client without a name may listen.
// Some examples have no handler that calls it.
#[allow(dead_code)]
pub fn who(request: &ConnectRequest) -> Result<Identity, Refusal> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    match request.bearer_token() {
        None => Ok(Identity::anonymous()),
        Some(name) if (1..=40).contains(&name.len()) && name.chars().all(good) => Ok(Identity::user(name)),
        Some(_) => Err(Refusal::bad_request(
            "a name has 1 to 40 letters, digits, '-', '_', '.' and '~'",
        )),
    }
}
