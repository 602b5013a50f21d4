//! A refusal has one of the few error codes that clients see, the same on every transport.

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;

/// A code says why Airwave refuses a request.
pub use airwave_protocol::Code;

use crate::event::{Invalid, quoted};

/// A refusal has a code and a text that the client may see.
///
/// A handler refuses with it. An axum handler of the application may return it: with the feature
/// `axum` it is a response with the HTTP status of its code.
///
/// # Examples
/// An error of the application itself becomes `internal`. The client receives this code and no
/// more. The log has the error and all its causes.
///
/// ```
/// use airwave_core::{Code, Refusal};
///
/// fn place(text: &str) -> Result<u16, Refusal> {
///     text.parse().map_err(Refusal::from_error)
/// }
///
/// let refusal = place("far away").unwrap_err();
/// assert_eq!(refusal.code, Code::Internal);
/// assert!(!refusal.message.contains("digit"), "that is for the log alone");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Refusal {
    /// Names the kind of refusal.
    pub code: Code,
    /// Tells people what went wrong and what to do. It never holds secrets.
    pub message: Cow<'static, str>,
    /// Names the transport to use instead, only with [`Code::WrongTransport`].
    pub transport: Option<crate::rule::TransportName>,
    /// Holds the cause for the log, never for the client.
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// Two refusals are equal if the client receives the same. The cause does not count.
impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        (self.code, &self.message, &self.transport) == (other.code, &other.message, &other.transport)
    }
}

impl Eq for Refusal {}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.cause.as_ref()?)
    }
}

impl Refusal {
    /// Creates a refusal with a text for the client.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            transport: None,
            cause: None,
        }
    }

    /// Creates a refusal with [`Code::Internal`] from an error of the application. It may be any
    /// [`std::error::Error`], an error type that collects others, or a text.
    ///
    /// The client receives nothing of the error. The log has it, with all its sources, at the place
    /// where Airwave answers with the refusal. A `?` is enough in a function that returns
    /// `Box<dyn Error + Send + Sync>`. A [`Refusal`] stays what it is, and an [`Invalid`] is
    /// `bad-request`.
    pub fn from_error(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = match error.into().downcast::<Refusal>() {
            Ok(refusal) => return *refusal,
            Err(error) => error,
        };
        match error.downcast::<Invalid>() {
            Ok(invalid) => (*invalid).into(),
            Err(error) => Self {
                cause: Some(error.into()),
                ..Self::internal("the application failed at this: the cause is in the server's log")
            },
        }
    }

    /// Creates a refusal with [`Code::BadRequest`].
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    /// Creates a refusal with [`Code::Unauthorized`].
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unauthorized, message)
    }

    /// Creates a refusal with [`Code::Forbidden`].
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// Creates a refusal with [`Code::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Creates a refusal with [`Code::Internal`]. The text must not name details of the server.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Returns the fields of the JSON object for the client: `"code":…,"message":…` and, with
    /// `wrong-transport`, the transport to use and its `url`.
    pub fn json_fields(&self, url: Option<&str>) -> String {
        let mut json = format!("\"code\":\"{}\",\"message\":{}", self.code.as_str(), quoted(&self.message));
        if let Some(transport) = &self.transport {
            json.push_str(&format!(",\"transport\":{}", quoted(transport.as_str())));
            if let Some(url) = url {
                json.push_str(&format!(",\"url\":{}", quoted(url)));
            }
        }
        json
    }

    /// Takes the cause away and returns the chain of its texts. Each cause so reaches the log once.
    pub(crate) fn take_cause(&mut self) -> Option<String> {
        let cause = self.cause.take()?;
        let mut texts = cause.to_string();
        let mut next = cause.source();
        while let Some(source) = next {
            texts.push_str(": ");
            texts.push_str(&source.to_string());
            next = source.source();
        }
        Some(texts)
    }
}

impl From<Box<dyn Error + Send + Sync>> for Refusal {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        Self::from_error(error)
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::bad_request(invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[derive(Debug, thiserror::Error)]
    #[error("the order was not saved")]
    struct NotSaved(#[source] std::num::ParseIntError);

    fn not_saved() -> NotSaved {
        NotSaved("x".parse::<u8>().unwrap_err())
    }

    #[test]
    fn an_error_of_the_application_is_internal_and_its_texts_are_for_the_log() {
        fn asks() -> Result<(), Refusal> {
            fn saves() -> Result<(), Box<dyn Error + Send + Sync>> {
                Err(not_saved())?
            }
            Ok(saves()?)
        }
        for mut refusal in [asks().unwrap_err(), Refusal::from_error(not_saved())] {
            assert_eq!(refusal.code, Code::Internal);
            assert!(refusal.source().is_some());
            for shown in [refusal.to_string(), refusal.json_fields(None)] {
                assert!(!shown.contains("saved") && !shown.contains("digit"), "{shown}");
            }
            assert_eq!(
                refusal.take_cause().unwrap(),
                "the order was not saved: invalid digit found in string"
            );
            assert_eq!(refusal.take_cause(), None);
        }
    }

    #[test]
    fn what_a_client_is_told_is_one_line() {
        let fields = Refusal::forbidden("a\r\nb\u{85}c\u{2028}d\u{7f}").json_fields(None);
        assert!(fields.is_ascii() && !fields.contains(char::is_control), "{fields:?}");
        let body: serde_json::Value = serde_json::from_str(&format!("{{{fields}}}")).unwrap();
        assert_eq!(body["message"], "a\r\nb\u{85}c\u{2028}d\u{7f}");
    }

    #[test]
    fn a_refusal_among_other_errors_stays_what_it_is() {
        let boxed: Box<dyn Error + Send + Sync> = Refusal::forbidden("not yours").into();
        assert_eq!(Refusal::from(boxed), Refusal::forbidden("not yours"));
        let invalid: Box<dyn Error + Send + Sync> = crate::EventName::new("").unwrap_err().into();
        assert_eq!(Refusal::from(invalid).code, Code::BadRequest);
    }

    #[test]
    fn codes_map_one_to_one() {
        let texts: HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        let statuses: HashSet<_> = Code::ALL.iter().map(|c| c.http_status()).collect();
        let closes: HashSet<_> = Code::ALL.iter().map(|c| c.close_code()).collect();
        assert_eq!((texts.len(), statuses.len(), closes.len()), (10, 10, 10));
        assert_eq!(Code::WrongTransport.close_code(), 4406);
    }
}
