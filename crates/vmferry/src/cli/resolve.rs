//! `vmferry resolve`.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::{
    api::types::{ResolveRequest, ResolveView},
    cli::{
        client::{Client, segment},
        exit::{Exit, Failure},
        output::print,
    },
};

/// Shows what is known, asks, and has the agent carry the decision out.
pub async fn resolve(client: &Client, json: bool, vm: &str, keep: String, yes: bool) -> Result<Exit, Failure> {
    let path = format!("/v1/vms/{}/resolve", segment(vm));
    let known: ResolveView = client.get(&path).await?;
    if !yes {
        if json || !io::stdin().is_terminal() {
            return Err(Failure::Usage(format!(
                "{}\n\nNothing was done. If all of that is true, say so with --yes.",
                describe(&known, &keep)
            )));
        }
        eprintln!("{}", describe(&known, &keep));
        if !confirmed()? {
            return Err(Failure::Usage("nothing was done".to_owned()));
        }
    }
    let request = ResolveRequest {
        migration: known.migration,
        keep,
    };
    let decided: ResolveView = client.post(&path, &request).await?;
    print(json, &decided, |decided| {
        format!("decided: the copy of {} on {} is the VM", decided.vm, request.keep)
    })?;
    Ok(Exit::Ok)
}

fn confirmed() -> io::Result<bool> {
    eprint!("Is all of that true? Type \"yes\": ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

fn describe(known: &ResolveView, keep: &str) -> String {
    let role = if known.is_target { "from" } else { "to" };
    let arbiter = known
        .arbiter
        .as_ref()
        .map(|said| format!("\n{said}."))
        .unwrap_or_default();
    let must = if keep == known.here {
        &known.keep_here
    } else {
        &known.keep_other
    };
    format!(
        "The handover of {} {role} the host at {} (migration {}) waits for that host.\n\
         This host, {}, has a paused copy; its journal: {}.{arbiter}\n\n{must}",
        known.vm,
        known.other,
        known.migration,
        known.here,
        known.records.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_core::wire::hello::MigrationId;

    #[test]
    fn what_must_be_true_is_that_of_the_host_to_be_kept() {
        let known = ResolveView {
            vm: "web".to_owned(),
            migration: MigrationId(7),
            epoch: 2,
            here: "host-b".to_owned(),
            is_target: true,
            other: "10.0.0.1:7464".to_owned(),
            records: vec!["Prepared".to_owned()],
            arbiter: None,
            keep_here: "HERE".to_owned(),
            keep_other: "OTHER".to_owned(),
        };
        let here = describe(&known, "host-b");
        assert!(
            here.contains("HERE") && !here.contains("OTHER") && here.contains("Prepared"),
            "{here}"
        );
        assert!(describe(&known, "10.0.0.1").contains("OTHER"));
    }
}
