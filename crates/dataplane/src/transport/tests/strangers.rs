//! Who is not of the cluster, and who does not keep to the protocol.

use super::*;
use std::net::TcpListener;
use std::sync::mpsc::{RecvTimeoutError, channel};

/// What both say when these meet.
fn refused(a: &Security, b: &Security) -> [String; 2] {
    greet(a, b, "a").map(|end| end.map(drop).unwrap_err().to_string())
}

/// Each is wrong once as the one that connects and once as the one that is connected to.
fn is_refused_by(wrong: &Security, right: &Security, theirs: &str, own: &str) {
    let [as_client, at_server] = refused(wrong, right);
    let [at_client, as_server] = refused(right, wrong);
    for (said, with) in [
        (at_server, theirs),
        (at_client, theirs),
        (as_client, own),
        (as_server, own),
    ] {
        assert!(said.contains(with), "{said:?} instead of {with:?}");
    }
}

#[test]
fn a_host_of_another_cluster_is_refused() {
    let (ours, other) = (Cluster::new(), Cluster::new());
    // Both are wrong here, and who looks first says so.
    let said = refused(&other.host("a"), &ours.host("b"));
    assert!(said[0].contains("of another cluster"), "{said:?}");
    assert!(said[1].contains("of another cluster"), "{said:?}");
}

#[test]
fn a_certificate_that_has_expired_is_refused() {
    let cluster = Cluster::new();
    let late = joined(cluster.credentials(&["a"], 2020), provider());
    is_refused_by(
        &late,
        &cluster.host("b"),
        "not accepted: it has expired",
        "certificate has expired",
    );
}

#[test]
fn a_certificate_that_was_revoked_is_refused() {
    let mut cluster = Cluster::new();
    // It does not know it yet.
    let gone = cluster.host("a");
    cluster.revoke("a");
    is_refused_by(
        &gone,
        &cluster.host("b"),
        "not accepted: it was revoked",
        "certificate was revoked",
    );
}

#[test]
fn a_certificate_of_several_hosts_is_refused() {
    let cluster = Cluster::new();
    assert!(Tls::new(cluster.credentials(&["a", "b"], 2100)).is_err());
}

#[test]
fn who_has_no_certificate_may_join_where_that_is_done_and_do_nothing_else() {
    let cluster = Cluster::new();
    let provider = provider();
    let anonymous = |purpose: Purpose| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cluster.credentials(&["a"], 2100).authority).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(tls::any_host(roots, provider.clone()))
            .with_no_client_auth();
        config.alpn_protocols = vec![purpose.protocol().to_vec()];
        Arc::new(config)
    };
    let meet = |purpose, takes_joins| {
        let mut credentials = cluster.credentials(&["b"], 2100);
        credentials.takes_joins = takes_joins;
        let b = joined(credentials, provider.clone());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepts = thread::spawn(move || accept(listener.accept().unwrap().0, &b));
        let mut link = connect_with(address, anonymous(purpose), purpose);
        // In TLS 1.3 a client is done before it is known whether its certificate, or none, is accepted.
        if let Ok(link) = &mut link {
            let _ = link.write_all(b"x");
        }
        drop(link);
        accepts.join().unwrap()
    };
    for takes_joins in [false, true] {
        for purpose in [Purpose::Lane, Purpose::Certificates] {
            let error = meet(purpose, takes_joins).unwrap_err().to_string();
            assert!(error.contains("shows no certificate"), "{error}");
        }
        let error = meet(Purpose::Api, takes_joins).unwrap_err().to_string();
        assert!(error.contains("TLS fails"), "{error}");
    }
    assert!(meet(Purpose::Join, false).is_err());
    let joins = meet(Purpose::Join, true).unwrap();
    assert_eq!((joins.purpose(), joins.host()), (Purpose::Join, None));
}

#[test]
fn one_side_without_tls_is_told_so_on_both() {
    let cluster = Cluster::new();
    let [plain, tls] = refused(&Security::Plaintext, &cluster.host("b"));
    assert!(
        plain.contains("speaks TLS only") && tls.contains("does not speak TLS"),
        "{plain} {tls}"
    );
    let [tls, plain] = refused(&cluster.host("a"), &Security::Plaintext);
    assert!(
        plain.contains("speaks TLS, and this side") && tls.contains("does not speak TLS"),
        "{plain} {tls}"
    );
}

/// What accepting says of a peer that sends these bytes, and what it answers them with.
fn answered(bytes: &[u8]) -> (TransportError, Vec<u8>) {
    let (here, mut peer) = connected();
    let cluster = Cluster::new();
    peer.write_all(bytes).unwrap();
    let reads = thread::spawn(move || {
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).unwrap();
        answer
    });
    let error = accept(here, &cluster.host("b")).unwrap_err();
    (error, reads.join().unwrap())
}

#[test]
fn an_older_tls_is_refused() {
    // A ClientHello of TLS 1.2: a random number, no session, one suite, no compression, the curves and signatures that
    // such a client would offer, and nothing that says that it knows TLS 1.3.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0xc0, 0x2b],
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    let record = [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat();
    let (error, answer) = answered(&record);
    assert!(error.to_string().contains("TLS fails"), "{error}");
    // A fatal alert, and its reason: the version of the protocol.
    assert_eq!(answer[answer.len() - 2..], [2, 70], "{answer:?}");
}

#[test]
fn garbage_is_let_go() {
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 100],
        &[22, 3, 1, 0, 5, 9, 9, 9, 9, 9],
        &[22; 30_000],
    ] {
        let (error, _) = answered(garbage);
        let is_told = matches!(error, TransportError::Tls(_) | TransportError::TooLong);
        assert!(is_told, "{error}");
    }
}

#[test]
fn a_handshake_that_never_ends_is_not_waited_for() {
    let cluster = Cluster::new();
    // A record whose end never comes, and a connection on which nothing does.
    for begins in [&[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb][..], &[]] {
        let (here, mut peer) = connected();
        peer.write_all(begins).unwrap();
        let (over, is_over) = channel::<()>();
        let pace = Duration::from_millis(5);
        let drips = !begins.is_empty();
        let sends = thread::spawn(move || {
            // Each byte comes well within the limit; all together take minutes.
            while is_over.recv_timeout(pace) == Err(RecvTimeoutError::Timeout) {
                if drips && peer.write_all(&[3]).is_err() {
                    return;
                }
            }
        });
        let error = accept_within(Duration::from_millis(300), here, &cluster.host("b")).unwrap_err();
        drop(over);
        sends.join().unwrap();
        assert!(error.to_string().contains("takes too long"), "{error}");
    }
}

#[test]
fn a_peer_that_connects_and_goes_is_no_matter() {
    let (here, peer) = connected();
    drop(peer);
    let error = accept(here, &Cluster::new().host("b")).unwrap_err();
    assert!(matches!(error, TransportError::Closed), "{error}");
}
