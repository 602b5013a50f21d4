//! Pages that are carried in the binary, so that they need no build step and no other server.

use axum::Router;
use axum::body::Body;
use axum::response::{Redirect, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue};

/// Not executed as anything but what it says it is.
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// Nothing from elsewhere, nothing inline, and no text that becomes markup or script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; worker-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// A page and its files, each as name and text, in the folder `at` (`/dashboard/`). `index.html`
/// answers for the folder itself; names may have slashes.
///
/// They are sent with a content security policy that allows only what comes from the same server,
/// and no inline script or style.
pub fn pages(at: &str, files: &[(&str, &'static str)]) -> Router {
    let folder = at.trim_end_matches('/');
    let mut router = Router::new();
    for &(name, text) in files {
        // By name, so that the kind outlives the list.
        let kind = kind(name);
        let path = match name {
            "index.html" => format!("{folder}/"),
            name => format!("{folder}/{name}"),
        };
        router = router.route(&path, get(move || async move { answer(kind, text) }));
    }
    if folder.is_empty() {
        return router;
    }
    let to = format!("{folder}/");
    router.route(folder, get(move || async move { Redirect::permanent(&to) }))
}

/// One file, whose kind its name tells.
pub(crate) fn file(name: &str, text: &'static str) -> Response {
    answer(kind(name), text)
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_folder_is_its_index_and_each_file_has_its_kind() {
        let app = pages("/shop/", &[("index.html", "<p>"), ("js/a.js", "1")]);
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap()
        };
        let page = ask("/shop/").await;
        assert_eq!(page.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(
            page.headers()[CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .contains("default-src 'none'")
        );
        assert_eq!(
            ask("/shop/js/a.js").await.headers()[CONTENT_TYPE],
            "text/javascript; charset=utf-8"
        );
        assert_eq!(ask("/shop").await.headers()["location"], "/shop/");
        assert_eq!(ask("/shop/b.js").await.status(), StatusCode::NOT_FOUND);
        assert_eq!(ask("/").await.status(), StatusCode::NOT_FOUND);
    }
}
