//! Who this host is to others, and who it asks: its certificate, the authority's host, the arbiter.

use std::time::Duration;

use super::Finding;
use crate::{
    agent::Config,
    arbiter::{Arbiter, ArbiterError, ArbiterName},
    pki::{CERTIFICATE_LIFE, Certificate, Folder, client},
};

/// An agent renews when a third of a certificate's life is left, and tries every five minutes: less than so much means that it
/// has been trying in vain for a day.
const LEFT_MIN: Duration = Duration::from_secs(CERTIFICATE_LIFE.as_secs() / 3 - 24 * 3600);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = match config.insecure_plaintext {
        true => vec![Finding::warning(
            "certificate",
            "the agent talks to others without encryption, and believes whoever connects",
            "leave --insecure-plaintext out; it is for measurements only",
        )],
        false => certificates(&Folder::new(&config.state_dir)).await,
    };
    // It keeps a number of this host's there, which is not made for a look.
    if config.arbiter.is_some() && config.state_dir.is_dir() {
        let asked = match Arbiter::new(config) {
            Ok(arbiter) => arbiter.name().await,
            Err(error) => Err(error),
        };
        findings.push(arbiter(asked));
    }
    findings
}

async fn certificates(folder: &Folder) -> Vec<Finding> {
    let certificate = match folder.certificate() {
        Ok(certificate) => certificate,
        Err(why) => {
            let remedy =
                "vmferry pki init on the first host; vmferry pki invite there and vmferry pki join here on others";
            return vec![Finding::problem("certificate", format!("{why:#}"), remedy)];
        }
    };
    let mut findings = vec![life(&certificate)];
    if !folder.has_authority() && !certificate.left().is_zero() {
        let folder = folder.clone();
        let asked = tokio::task::spawn_blocking(move || client::fetch_revocations(&folder)).await;
        let asked = asked.map_err(anyhow::Error::from).and_then(|asked| asked);
        findings.push(authority(asked.map(|_| ()).map_err(|error| format!("{error:#}"))));
    }
    findings
}

fn life(certificate: &Certificate) -> Finding {
    let (host, left) = (&certificate.host, certificate.left());
    let days = format!("{:.1}", left.as_secs_f64() / 86_400.0);
    if left.is_zero() {
        let found = format!("the certificate of {host} has expired: no host talks to this one");
        let remedy =
            "remove pki/host.pem from the state directory, and join again: vmferry pki invite, vmferry pki join";
        return Finding::problem("certificate", found, remedy);
    }
    if left < LEFT_MIN {
        let found = format!("the certificate of {host} is valid for {days} days more, and should have been renewed");
        let remedy = "see that the agent of the authority's host runs and can be reached; then vmferry pki rotate";
        return Finding::warning("certificate", found, remedy);
    }
    Finding::ok(
        "certificate",
        format!("the certificate of {host} is valid for {days} days more; the agent renews it"),
    )
}

fn authority(asked: Result<(), String>) -> Finding {
    match asked {
        Ok(()) => Finding::ok("authority", "the authority's host answers"),
        Err(why) => Finding::warning(
            "authority",
            format!("{why}; without it, revocations are not heard of, and the certificate expires"),
            "start the agent on the authority's host, and let it be reached; vmferry pki status says where it is",
        ),
    }
}

fn arbiter(asked: Result<Option<ArbiterName>, ArbiterError>) -> Finding {
    match asked {
        Ok(name) => {
            let cluster = name.map(|name| name.cluster).unwrap_or_default();
            Finding::ok("arbiter", format!("etcd answers, cluster {cluster}"))
        }
        Err(error) => Finding::problem(
            "arbiter",
            format!("{error}; until it answers, VMs are neither started nor moved"),
            "see with etcdctl endpoint health, and whether `arbiter` names its nodes and their certificates",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::Verdict, pki::Authority};

    fn certificate(left: Duration) -> Certificate {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::new(folder.path());
        Authority::create(&folder, "host-a", "host-a:7464").unwrap();
        let whole = folder.certificate().unwrap();
        let until_unix = whole.until_unix - whole.left().as_secs() + left.as_secs();
        Certificate { until_unix, ..whole }
    }

    #[test]
    fn a_certificate_is_valid_or_late_or_over() {
        assert_eq!(life(&certificate(CERTIFICATE_LIFE)).verdict, Verdict::Ok);
        assert_eq!(
            life(&certificate(LEFT_MIN + Duration::from_secs(60))).verdict,
            Verdict::Ok
        );
        assert_eq!(
            life(&certificate(LEFT_MIN - Duration::from_secs(60))).verdict,
            Verdict::Warning
        );
        assert_eq!(life(&certificate(Duration::ZERO)).verdict, Verdict::Problem);
    }

    #[tokio::test]
    async fn a_host_has_to_be_of_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let found = certificates(&Folder::new(folder.path())).await;
        assert!(
            found[0].verdict == Verdict::Problem && found[0].found.contains("no certificate"),
            "{found:?}"
        );
    }

    #[test]
    fn whoever_is_asked_answers_or_not() {
        assert_eq!(authority(Ok(())).verdict, Verdict::Ok);
        assert_eq!(authority(Err("no".to_owned())).verdict, Verdict::Warning);
        assert_eq!(arbiter(Ok(None)).verdict, Verdict::Ok);
        assert_eq!(
            arbiter(Err(ArbiterError::Unreachable("no".to_owned()))).verdict,
            Verdict::Problem
        );
    }
}
