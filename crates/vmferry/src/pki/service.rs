//! Answers what other hosts ask about certificates. Blocks; the connection's deadline bounds for how long.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use vmferry_dataplane::transport::{Link, Purpose};

use super::authority::{Authority, Granted};
use super::client;
use super::folder::Folder;
use super::message::{Answer, Question, hear, say};

/// Answers one question.
///
/// # Errors
/// Why none could be; the peer is told of what it asked wrongly.
pub fn answer(folder: &Folder, mut link: Link) -> Result<()> {
    let question = hear(&mut link)?;
    let peer = link.host().unwrap_or("a host that has yet to join").to_owned();
    let answer = decide(folder, &link, question);
    let declined = answer.as_ref().err().map(|error| format!("{error:#}"));
    let answer = answer.unwrap_or_else(|error| Answer::Declined {
        reason: format!("{error:#}"),
    });
    say(&mut link, &answer)?;
    match declined {
        Some(why) => Err(anyhow::anyhow!("{peer} was declined: {why}")),
        None => Ok(()),
    }
}

fn decide(folder: &Folder, link: &Link, question: Question) -> Result<Answer> {
    let reached = |port| Ok::<_, std::io::Error>(Some(SocketAddr::new(link.address()?.ip(), port).to_string()));
    match (link.purpose(), question, link.host()) {
        (Purpose::Join, Question::Join { secret, request, port }, _) => {
            let granted = Authority::open(folder)?.admit(&secret, &request, reached(port)?)?;
            tracing::info!(from = %link.address()?, "a host has joined");
            Ok(granted.into())
        }
        (Purpose::Certificates, Question::Renew { request, port }, Some(host)) => {
            let granted = Authority::open(folder)?.renew(host, &request, reached(port)?)?;
            Ok(granted.into())
        }
        (Purpose::Certificates, Question::Revocations, _) => Ok(Answer::Revocations {
            list: folder.read_text(&folder.revoked())?,
        }),
        (Purpose::Certificates, Question::Revoked { list }, Some(host)) => {
            if client::take_revocations(folder, &list).context("this list of revocations is not taken")? {
                tracing::info!(from = host, "certificates were revoked");
            }
            Ok(Answer::Revocations {
                list: folder.read_text(&folder.revoked())?,
            })
        }
        _ => anyhow::bail!("that can't be asked here, or not by a host without a certificate"),
    }
}

impl From<Granted> for Answer {
    fn from(granted: Granted) -> Answer {
        let Granted {
            certificate,
            authority,
            revoked,
        } = granted;
        Answer::Certificate {
            certificate,
            authority,
            revoked,
        }
    }
}
