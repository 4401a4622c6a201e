//! Why there is no connection, in sentences about "it", the peer.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a peer is not talked to.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The network, the operating system, or a peer that takes too long.
    #[error("{}", io_sentence(.0))]
    Io(#[from] io::Error),
    /// It went away during the handshake.
    #[error("it closed the connection before it was clear who it is")]
    Closed,
    /// It begins as TLS does.
    #[error("it speaks TLS, and this side was started with --insecure-plaintext: start both sides in the same way")]
    SpeaksTls,
    /// It begins as a lane without TLS does.
    #[error("it does not speak TLS: start both sides in the same way, with a certificate from `vmferry pki join`")]
    SpeaksPlain,
    /// TLS itself: its certificate, or ours, or what it sends.
    #[error("{}", sentence(.0))]
    Tls(#[from] Error),
    /// Its certificate names no host, or several.
    #[error("its certificate does not name one host")]
    NoHost,
    /// It agrees on no protocol of agents.
    #[error("it speaks TLS, but is not a vmferry agent")]
    NoAgent,
    /// More bytes than a handshake of two agents ever takes.
    #[error("its handshake is too long")]
    TooLong,
}

fn io_sentence(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "it takes too long to say who it is and what it wants".to_owned()
        }
        _ => error.to_string(),
    }
}

fn sentence(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => format!("its certificate is not accepted: {}", certificate(why)),
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::AlertReceived(alert) => refusal(*alert),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => TransportError::SpeaksPlain.to_string(),
        _ => format!("TLS fails: {error}"),
    }
}

fn certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or one of the clocks is wrong".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, so one of the clocks is wrong".to_owned()
        }
        CertificateError::Revoked => "it was revoked".to_owned(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "it is of another cluster".to_owned(),
        why => why.to_string(),
    }
}

/// What it says of this host.
fn refusal(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateRevoked => "was revoked",
        AlertDescription::CertificateExpired => "has expired, or one of the clocks is wrong: see `vmferry pki status`",
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "is of another cluster",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "is not one that it knows how to check",
        AlertDescription::CertificateRequired => "is needed: get one with `vmferry pki join`",
        AlertDescription::NoApplicationProtocol => {
            return "it does not do what this connection is for: is it the host that was meant, and of this version?"
                .to_owned();
        }
        alert => return format!("it ends the connection: {alert:?}"),
    };
    format!("it does not accept this host: its certificate {why}")
}
