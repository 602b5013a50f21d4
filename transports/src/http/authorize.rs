//! This module decides which requests may publish over HTTP.

use airwave_core::Refusal;
use http::header::{AUTHORIZATION, HeaderValue};
use http::request::Parts;

use crate::request::{Publishers, is_local, only};

/// Checks that a request may publish.
///
/// # Errors
/// `unauthorized`: the token is missing or wrong; `forbidden`: no token opens this server.
pub(super) fn authorize(publishers: &Publishers, parts: &Parts) -> Result<(), Refusal> {
    match publishers {
        Publishers::Anybody => Ok(()),
        Publishers::Local if is_local(parts) => Ok(()),
        Publishers::Local => Err(Refusal::forbidden(
            "without a publish token this server takes publishes only at localhost or an IP address, and through no proxy: set publish.token in its configuration",
        )),
        Publishers::NoOne => Err(Refusal::forbidden(
            "publishing over HTTP is off: set publish.token in the server's configuration and send 'Authorization: Bearer TOKEN'",
        )),
        Publishers::Token(token) => {
            let given = only(&parts.headers, &AUTHORIZATION)?
                .map(HeaderValue::as_bytes)
                .and_then(|value| {
                    let (scheme, token) = value.split_at_checked(7)?;
                    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
                });
            match given {
                Some(given) if same(given, token.as_bytes()) => Ok(()),
                Some(_) => Err(Refusal::unauthorized("this is not the publish token")),
                None => Err(Refusal::unauthorized("publishing needs 'Authorization: Bearer TOKEN'")),
            }
        }
    }
}

/// Compares two tokens in a time that does not depend on their content. The time therefore does not
/// show how much of a wrong token is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use airwave_core::Code;
    use http::header::{HOST, HeaderName};

    use super::*;

    fn request(target: &str, headers: &[(HeaderName, &'static str)]) -> Parts {
        let mut request = http::Request::post(target);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refused(publishers: &Publishers, parts: &Parts) -> Result<(), Code> {
        authorize(publishers, parts).map_err(|no| no.code)
    }

    #[test]
    fn only_the_token_publishes() {
        let with = |value: Option<&'static str>| {
            let headers: Vec<_> = value.map(|value| (AUTHORIZATION, value)).into_iter().collect();
            refused(&Publishers::Token("correct horse".into()), &request("/publish", &headers))
        };
        assert_eq!(with(Some("Bearer correct horse")), Ok(()));
        assert_eq!(with(Some("bearer correct horse")), Ok(()));
        for wrong in [
            None,
            Some("Bearer "),
            Some("Bearer correct hors"),
            Some("Bearer correct horsf"),
            Some("Basic correct horse"),
            Some("x"),
        ] {
            assert_eq!(with(wrong), Err(Code::Unauthorized), "{wrong:?}");
        }
        assert_eq!(refused(&Publishers::NoOne, &request("/publish", &[])), Err(Code::Forbidden));
    }

    #[test]
    fn a_name_that_a_foreign_site_made_lead_here_publishes_nothing() {
        let named = |host: &'static str| refused(&Publishers::Local, &request("/publish", &[(HOST, host)]));
        for ours in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.168.1.7",
        ] {
            assert_eq!(named(ours), Ok(()), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "",
        ] {
            assert_eq!(named(foreign), Err(Code::Forbidden), "{foreign}");
        }
        assert_eq!(refused(&Publishers::Local, &request("/publish", &[])), Err(Code::Forbidden));
        // An HTTP/2 request has the name in the target.
        assert_eq!(refused(&Publishers::Local, &request("http://[::1]:80/publish", &[])), Ok(()));
        let rebound = request("http://evil.example/publish", &[(HOST, "localhost")]);
        assert_eq!(refused(&Publishers::Local, &rebound), Err(Code::Forbidden));
    }

    #[test]
    fn a_proxy_that_shows_itself_publishes_nothing_without_a_token() {
        let local = |sign: HeaderName| {
            refused(
                &Publishers::Local,
                &request("/publish", &[(HOST, "127.0.0.1:8080"), (sign, "x")]),
            )
        };
        assert_eq!(local(HeaderName::from_static("x-request-id")), Ok(()));
        for sign in ["forwarded", "via", "x-forwarded-for", "x-real-ip"] {
            assert_eq!(local(HeaderName::from_static(sign)), Err(Code::Forbidden), "{sign}");
        }
        let mut old = request("/publish", &[(HOST, "127.0.0.1:8080")]);
        old.version = http::Version::HTTP_10;
        assert_eq!(refused(&Publishers::Local, &old), Err(Code::Forbidden));
    }
}
