//! The page: a sandboxed frame that signs and calls, and what became of it.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use http::{HeaderValue, StatusCode, header};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{ACCOUNT, Recent, USER};

const PAGE: &str = include_str!("page.html");
const FRAME: &str = include_str!("frame.html");

/// What the page shows and the frame knows.
pub(super) struct Site {
    pub(super) gateway: SocketAddr,
    pub(super) secret: String,
    pub(super) recent: Recent,
}

/// Serves on `listener` from a thread of its own, to the end of the process.
pub(super) fn serve(listener: TcpListener, site: Site) -> io::Result<()> {
    let site = Arc::new(site);
    on_thread("page", listener, move |stream| {
        let site = Arc::clone(&site);
        async move {
            let service = service_fn(|request| {
                let response = site.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        }
    })
}

/// Accepts on a thread with a runtime of its own and has each connection served.
pub(super) fn on_thread<F>(
    name: &str,
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = ()> + 'static,
{
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let accept = move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream));
            }
        });
    };
    std::thread::Builder::new().name(name.into()).spawn(accept)?;
    Ok(())
}

impl Site {
    fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        // Another name for this address would let a page of somebody else read the secret.
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if name != "localhost" && name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
            return text(StatusCode::MISDIRECTED_REQUEST, "text/plain", "open this page by its address\n".to_owned());
        }
        match request.uri().path() {
            "/" => text(StatusCode::OK, "text/html; charset=utf-8", self.filled(PAGE)),
            "/frame" => text(StatusCode::OK, "text/html; charset=utf-8", self.filled(FRAME)),
            path => match path.strip_prefix("/record/").filter(|id| id.len() == 36).and_then(|id| self.recent.of(id)) {
                Some(line) => text(StatusCode::OK, "application/json", line),
                None => text(StatusCode::NOT_FOUND, "text/plain", "nothing here\n".to_owned()),
            },
        }
    }

    fn filled(&self, page: &str) -> String {
        let gateway = format!("https://{}", self.gateway);
        page.replace("{{gateway}}", &gateway)
            .replace("{{secret}}", &self.secret)
            .replace("{{user}}", USER)
            .replace("{{account}}", ACCOUNT)
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
