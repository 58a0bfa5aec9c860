//! Upstreams that speak HTTP/2, and share one connection among many clients.

use std::{
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;

use crate::support::{Client, Gateway, signed_head};

/// A server that runs `serve` for each request, on connections with `streams` at one time, which it counts.
fn server<F, Fut>(streams: u32, serve: F) -> (String, Arc<AtomicUsize>)
where
    F: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let origin = format!("h2c://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (serve, counter) = (Arc::new(serve), Arc::clone(&connections));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                tokio::spawn(async move {
                    let mut settings = h2::server::Builder::new();
                    let mut connection = settings.max_concurrent_streams(streams).handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond));
                    }
                });
            }
        });
    });
    (origin, connections)
}

fn gateway(origin: &str, more: &str) -> Gateway {
    Gateway::with(&format!(
        "[upstreams.up]\nservers = [\"{origin}\"]\n{more}[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n"
    ))
}

fn answer_ok(mut respond: h2::server::SendResponse<Bytes>) {
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    send.send_data(Bytes::from_static(b"ok"), true).unwrap();
}

/// Sends for as long as it is taken.
async fn answer_for_ever(mut respond: h2::server::SendResponse<Bytes>) {
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    loop {
        send.reserve_capacity(16_000);
        let Some(Ok(_)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        let room = send.capacity();
        if room > 0 && send.send_data(Bytes::from(vec![b'x'; room]), false).is_err() {
            return;
        }
    }
}

/// Sends a head, and nothing more until nobody waits for it.
async fn answer_and_wait(mut respond: h2::server::SendResponse<Bytes>) {
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    let _ = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
}

/// A client that asks for `path` and reads no more than the head.
fn asking(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.connect();
    socket2::SockRef::from(&client.stream.sock).set_recv_buffer_size(4096).unwrap();
    client.send(signed_head("GET", path, ""));
    assert!(client.head().starts_with("HTTP/1.1 200"));
    client
}

#[test]
fn an_upload_that_was_taken_in_part_is_not_sent_again() {
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let (refused, was_refused) = mpsc::channel();
    let (origin, _) = server(100, move |request, mut respond| {
        let (kept, refused) = (Arc::clone(&kept), refused.clone());
        async move {
            if request.method() != "POST" {
                return answer_ok(respond);
            }
            let mut body = request.into_body();
            let first = body.data().await.unwrap().unwrap().to_vec();
            let is_first = kept.lock().unwrap().is_empty();
            kept.lock().unwrap().push(first);
            if is_first {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                drop(body);
                tokio::time::sleep(Duration::from_millis(200)).await;
                refused.send(()).unwrap();
            } else {
                answer_ok(respond);
            }
        }
    });
    let gateway = gateway(&origin, "");
    assert_eq!(gateway.ask(signed_head("GET", "/warm", "")).status, 200);
    let mut client = gateway.connect();
    let chunked = "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n";
    client.send(signed_head("POST", "/up", chunked) + "a\r\nFIRST-HALF\r\n");
    was_refused.recv_timeout(Duration::from_secs(5)).unwrap();
    client.send("b\r\nSECOND-HALF\r\n0\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"));
    assert_eq!(*seen.lock().unwrap(), [b"FIRST-HALF"]);
}

#[test]
fn clients_that_do_not_read_hold_nobody_else_s_answer() {
    let (origin, connections) = server(100, |request, respond| async move {
        if request.uri().path() == "/large" { answer_for_ever(respond).await } else { answer_ok(respond) }
    });
    let gateway = gateway(&origin, "");
    let unread: Vec<_> = (0..24).map(|_| asking(&gateway, "/large")).collect();
    // What is on the way to them fills up.
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(gateway.ask(signed_head("GET", "/small", "")).body, b"ok");
    }
    // What they hold fits into the windows of theirs.
    assert_eq!((unread.len(), connections.load(Ordering::SeqCst)), (24, 2));
}

#[test]
fn a_connection_on_which_there_is_no_room_is_not_waited_for_for_ever() {
    let (origin, connections) = server(10, |request, respond| async move {
        if request.uri().path() == "/events" { answer_and_wait(respond).await } else { answer_ok(respond) }
    });
    let gateway = gateway(&origin, "response_timeout = \"500ms\"\n");
    let open: Vec<_> = (0..10).map(|_| asking(&gateway, "/events")).collect();
    let first = gateway.ask(signed_head("GET", "/small", ""));
    assert_eq!((first.status, first.code().as_str()), (504, "upstream_timeout"));
    for _ in 0..3 {
        assert_eq!(gateway.ask(signed_head("GET", "/small", "")).status, 200);
    }
    assert_eq!((open.len(), connections.load(Ordering::SeqCst)), (10, 2));
}
