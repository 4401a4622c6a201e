//! The port that other hosts reach, and a peer: who it is, how far away, and through packets of which size.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};

use super::Finding;
use crate::{
    agent::Config,
    api::types::with_port,
    cli::units::milliseconds,
    pki::{Folder, client, may_be_at},
};

/// How long a connection may take. One that is dropped by a firewall takes for ever.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How often the round trip is measured; the shortest counts, as the others waited for something else.
const TRIES: usize = 5;
/// Each handover waits for a few of them while its guest is paused.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(20);
/// What TCP puts into a packet of Ethernet without options takes 1460 bytes, tunnels take away some hundred.
const SEGMENT_BYTES_MIN: u32 = 1200;

/// How a peer was reached.
#[derive(Debug, Clone, Copy)]
struct Way {
    round_trip: Duration,
    segment_bytes: u32,
}

pub(super) async fn check(config: &Config, agent_runs: bool, peer: Option<&str>) -> Vec<Finding> {
    let (config, peer) = (config.clone(), peer.map(with_port));
    let look = move || {
        let mut findings = vec![match agent_runs {
            true => listens(config.listen, connect(own(config.listen)).map(|_| ())),
            false => can_listen(config.listen, TcpListener::bind(config.listen).map(|_| ())),
        }];
        if let Some(peer) = peer {
            findings.extend(look_at(&config, &peer));
        }
        findings
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(findings) => findings,
        // It cannot have been cancelled, as nobody holds its handle but us.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Where this host reaches what listens on all of its addresses.
fn own(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn listens(address: SocketAddr, connected: io::Result<()>) -> Finding {
    match connected {
        Ok(()) => Finding::ok(
            "listen",
            format!("the agent listens on {address}; whether others get there, they find out with --peer"),
        ),
        Err(error) => Finding::problem(
            "listen",
            format!("nothing answers on {address}: {error}"),
            "is that where this agent listens (vmferry host)? Name its settings with --config, and see nft list ruleset",
        ),
    }
}

fn can_listen(address: SocketAddr, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::ok("listen", format!("{address} is free for the agent")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::problem(
            "listen",
            format!("another program listens on {address}"),
            format!(
                "ss -ltnp 'sport = :{}' says which; or choose another address with --listen",
                address.port()
            ),
        ),
        Err(error) => Finding::problem(
            "listen",
            format!("an agent can't listen on {address}: {error}"),
            "choose an address of this host with --listen",
        ),
    }
}

fn look_at(config: &Config, peer: &str) -> Vec<Finding> {
    let address = match peer.to_socket_addrs().map(|mut addresses| addresses.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return vec![unknown(peer, "it has no address")],
        Err(error) => return vec![unknown(peer, &error.to_string())],
    };
    let way = match measure(address) {
        Ok(way) => way,
        Err(error) => return vec![unreached(peer, &error)],
    };
    let talked = match config.insecure_plaintext {
        true => Ok(None),
        false => client::greet(&Folder::new(&config.state_dir), peer).map(Some),
    };
    let talked = talked.map_err(|error| format!("{error:#}"));
    vec![who(peer, talked), distance(peer, way), packets(peer, way)]
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, CONNECT_MAX)
}

fn measure(address: SocketAddr) -> io::Result<Way> {
    let mut way = Way {
        round_trip: Duration::MAX,
        segment_bytes: 0,
    };
    for _ in 0..TRIES {
        let started = Instant::now();
        let stream = connect(address)?;
        way.round_trip = way.round_trip.min(started.elapsed());
        way.segment_bytes = getsockopt(&stream, TcpMaxSeg)?;
    }
    Ok(way)
}

fn unknown(peer: &str, why: &str) -> Finding {
    Finding::problem(
        "peer",
        format!("{peer} is not a host that can be reached: {why}"),
        "see whether its name is right, and DNS",
    )
}

fn unreached(peer: &str, error: &io::Error) -> Finding {
    let remedy = match error.kind() {
        io::ErrorKind::TimedOut => "let TCP to that port through the firewalls of both hosts, and between them",
        io::ErrorKind::ConnectionRefused => "start the agent there, or name the port that it listens on",
        _ => "see whether the network leads there (ip route get)",
    };
    Finding::problem("peer", format!("{peer} can't be reached: {error}"), remedy)
}

fn who(peer: &str, talked: Result<Option<String>, String>) -> Finding {
    match talked {
        Ok(Some(host)) if !may_be_at(&host, peer) => Finding::problem(
            "peer",
            format!("{peer} has the certificate of {host}"),
            format!("if that is the host that was meant, call it {host}"),
        ),
        Ok(Some(host)) => Finding::ok("peer", format!("{peer} is {host}, of this cluster")),
        Ok(None) => Finding::ok("peer", format!("{peer} answers; without TLS nobody knows who it is")),
        Err(why) => Finding::problem(
            "peer",
            format!("{peer} is there, and not talked to: {why}"),
            "run vmferry doctor there, too; vmferry pki status says who each of both is",
        ),
    }
}

fn distance(peer: &str, way: Way) -> Finding {
    let time = milliseconds(way.round_trip.as_secs_f64() * 1e3);
    match way.round_trip > ROUND_TRIP_MAX {
        true => Finding::warning(
            "round-trip",
            format!("{peer} is {time} away, some times as much of which each guest pauses for"),
            "move over a shorter way, or allow longer pauses (--max-downtime)",
        ),
        false => Finding::ok("round-trip", format!("{peer} is {time} away")),
    }
}

fn packets(peer: &str, way: Way) -> Finding {
    let bytes = way.segment_bytes;
    match bytes < SEGMENT_BYTES_MIN {
        true => Finding::warning(
            "packets",
            format!("packets to {peer} carry {bytes} bytes: both hosts' processors have more of them to do"),
            "see ip link for an interface with a low MTU on the way",
        ),
        false => Finding::ok("packets", format!("packets to {peer} carry {bytes} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7464);

    fn refused<T>(kind: io::ErrorKind) -> io::Result<T> {
        Err(kind.into())
    }

    #[test]
    fn the_own_port_is_listened_on_or_free() {
        assert_eq!(own(ANY).to_string(), "127.0.0.1:7464");
        assert_eq!(listens(ANY, Ok(())).verdict, Verdict::Ok);
        assert_eq!(listens(ANY, refused(io::ErrorKind::TimedOut)).verdict, Verdict::Problem);
        assert_eq!(can_listen(ANY, Ok(())).verdict, Verdict::Ok);
        let taken = can_listen(ANY, refused(io::ErrorKind::AddrInUse));
        assert!(taken.verdict == Verdict::Problem && taken.remedy.unwrap().contains("ss -ltnp"));
        assert_eq!(
            can_listen(ANY, refused(io::ErrorKind::AddrNotAvailable)).verdict,
            Verdict::Problem
        );
    }

    #[test]
    fn a_peer_is_measured_where_something_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let way = measure(address).unwrap();
        assert!(way.round_trip > Duration::ZERO && way.segment_bytes > SEGMENT_BYTES_MIN);
        drop(listener);
        let error = measure(address).unwrap_err();
        let found = unreached("b:7464", &error);
        assert!(found.verdict == Verdict::Problem && found.remedy.unwrap().contains("start the agent"));
        assert!(
            unreached("b:7464", &io::ErrorKind::TimedOut.into())
                .remedy
                .unwrap()
                .contains("firewall")
        );
        assert!(unknown("b:7464", "no").found.contains("b:7464"));
    }

    #[test]
    fn a_peer_is_who_was_meant_and_near() {
        assert_eq!(who("host-b:7464", Ok(Some("host-b".to_owned()))).verdict, Verdict::Ok);
        assert_eq!(who("host-b:7464", Ok(None)).verdict, Verdict::Ok);
        assert_eq!(
            who("host-b:7464", Ok(Some("host-c".to_owned()))).verdict,
            Verdict::Problem
        );
        assert_eq!(
            who("host-b:7464", Err("it was revoked".to_owned())).verdict,
            Verdict::Problem
        );
        let way = |ms, segment_bytes| Way {
            round_trip: Duration::from_millis(ms),
            segment_bytes,
        };
        assert_eq!(distance("b", way(1, 1448)).verdict, Verdict::Ok);
        assert_eq!(distance("b", way(50, 1448)).verdict, Verdict::Warning);
        assert_eq!(packets("b", way(1, 1448)).verdict, Verdict::Ok);
        assert_eq!(packets("b", way(1, 536)).verdict, Verdict::Warning);
    }
}
