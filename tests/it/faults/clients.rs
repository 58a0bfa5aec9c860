//! Clients that leave, or stay and do not read.

use super::*;

const OPAQUE: &str = "Content-Type: application/octet-stream\r\n";

/// Fault: client vanishes mid-upload.
#[test]
fn an_upload_whose_client_vanishes_is_aborted_and_recorded() {
    for resets in [false, true] {
        for (framing, part) in
            [("Content-Length: 100\r\n", "half"), ("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n")]
        {
            let (ended, over) = mpsc::channel();
            let (begun, under_way) = mpsc::channel();
            let (ended, begun) = (Mutex::new(ended), Mutex::new(begun));
            let upstream = Upstream::raw(move |stream| {
                let mut got = Vec::new();
                if Upstream::read_until(stream, &mut got, b"half") {
                    begun.lock().unwrap().send(()).unwrap();
                    let _ = stream.read_to_end(&mut got);
                    let _ = ended.lock().unwrap().send((got, Instant::now()));
                }
            });
            let ground = Ground::new(&[&upstream.origin()], "");
            let mut client = ground.gateway.connect();
            client.send(signed_head("POST", "/gone", &format!("{OPAQUE}{framing}")) + part);
            under_way.recv_timeout(SOON).unwrap();
            if resets {
                reset(&client.stream.sock);
            } else {
                client.stream.sock.shutdown(Shutdown::Both).unwrap();
            }
            let left = Instant::now();
            drop(client);
            let (got, ended) = over.recv_timeout(SOON).expect("the upstream's connection ends with its client's");
            assert!(ended - left < Duration::from_secs(2), "{:?}", ended - left);
            let body = got.split_at(crate::support::find(&got, b"\r\n\r\n").unwrap() + 4).1;
            assert!(!body.ends_with(b"0\r\n\r\n") && body.len() < 100, "{:?}", String::from_utf8_lossy(body));
            let record = ground.record("/gone");
            assert_eq!(record["http.request.body.size"], 4);
            // Whether the client can still be told is not known when it is.
            match record["http.response.status_code"].as_u64() {
                Some(499) => assert_eq!(record["countersign.complete"], false),
                _ => assert_eq!(record["countersign.reason"], "request_malformed", "{record}"),
            }
        }
    }
}

/// Fault: client vanishes mid-download.
#[test]
fn a_download_whose_client_vanishes_is_cancelled() {
    for (path, begins) in [("/before-the-head", false), ("/within-the-body", true)] {
        for resets in [false, true] {
            let (ended, over) = mpsc::channel();
            let (begun, under_way) = mpsc::channel();
            let (ended, begun) = (Mutex::new(ended), Mutex::new(begun));
            let upstream = Upstream::serving(move |stream, _| {
                if begins {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                }
                begun.lock().unwrap().send(()).unwrap();
                let read = stream.read(&mut [0]);
                let _ = ended.lock().unwrap().send((read.unwrap_or_default(), Instant::now()));
                false
            });
            let ground = Ground::new(&[&upstream.origin()], "");
            let mut client = ground.gateway.connect();
            client.send(signed_head("GET", path, ""));
            under_way.recv_timeout(SOON).unwrap();
            if begins {
                client.read_until(b"half");
            }
            if resets {
                reset(&client.stream.sock);
            } else {
                client.stream.sock.shutdown(Shutdown::Both).unwrap();
            }
            let left = Instant::now();
            drop(client);
            let (read, ended) = over.recv_timeout(SOON).expect("the upstream is told");
            assert_eq!(read, 0, "another request came on the connection");
            assert!(ended - left < Duration::from_secs(2), "{path}: {:?}", ended - left);
            let record = ground.record(path);
            assert_eq!(record["http.response.status_code"], if begins { 200 } else { 499 });
            assert_eq!(record["countersign.complete"], false);
        }
    }
}

/// Fault: client vanishes mid-download, over HTTP/2: its stream is reset, the connection goes on.
#[test]
fn a_stream_that_is_given_up_cancels_its_request_and_no_other() {
    let (ended, over) = mpsc::channel();
    let ended = Mutex::new(ended);
    let bad = Bad::doing(move |stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        let _ = stream.read(&mut [0]);
        let _ = ended.lock().unwrap().send(Instant::now());
    });
    let ground = bad.ground("");
    crate::streams::over_http2(&ground.gateway, async |mut sender| {
        let request = crate::streams::request("GET", "/harm", Empty::<Bytes>::new());
        let answer = sender.send_request(request).await.unwrap();
        let left = Instant::now();
        drop(answer);
        let ended = tokio::task::spawn_blocking(move || over.recv_timeout(SOON)).await.unwrap();
        let took = ended.expect("the upstream is told") - left;
        assert!(took < Duration::from_secs(2), "{took:?}");
        let request = crate::streams::request("GET", "/fine", Empty::<Bytes>::new());
        let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "ok");
    });
    assert_eq!(ground.record("/harm")["countersign.complete"], false);
}

/// Fault: client never reads.
#[test]
fn a_client_that_never_reads_stalls_its_upstream_and_is_closed() {
    const ALL: usize = 256 * 1024 * 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, (ended, over)) = (Arc::clone(&sent), mpsc::channel());
    let ended = Mutex::new(ended);
    let bad = Bad::doing(move |stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n");
        let part = vec![b'x'; 64 * 1024];
        while stream.write_all(&part).is_ok() {
            counted.fetch_add(part.len(), Ordering::SeqCst);
        }
        let _ = ended.lock().unwrap().send(());
    });
    let ground = bad.ground("[limits]\nwrite_timeout = \"1s\"\n");
    let mut client = ground.gateway.connect();
    client.send(signed_head("GET", "/harm", ""));
    assert_eq!(ground.ask("GET", "/fine").answer.status, 200);
    over.recv_timeout(Duration::from_secs(20)).expect("the upstream's connection ends");
    let sent = sent.load(Ordering::SeqCst);
    // What the system's socket buffers took, and hardly more.
    assert!(sent < 32 * 1024 * 1024, "{sent} bytes were taken for a client that reads none");
    let record = ground.record("/harm");
    assert_eq!(record["countersign.complete"], false);
    assert!(record["http.response.body.size"].as_u64().unwrap() < ALL as u64);
    drop(client);
    assert_eq!(bad.times("/harm"), 1);
}
