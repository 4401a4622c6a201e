//! Any text is refused as a VM's definition, or is one that QEMU's arguments can be made of and that reads back from JSON as it was:
//! a journal that does not read back keeps its agent from starting. The same text is refused as an agent's configuration, or
//! gives one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use vmferry::agent::Settings;
use vmferry::config::Document;
use vmferry::vm::{
    Role, VmDefinition, VmFolder,
    command_line::arguments,
    definition::{Accel, DefinitionError},
};
use vmferry_fuzz::{given_to, within};

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    within((256 << 10) + 1024 * bytes.len(), || match way % 3 {
        0 => definition(VmDefinition::from_toml(text)),
        1 => definition(VmDefinition::from_json(bytes)),
        _ => {
            let read = Document::parse(text, None).and_then(|document| document.read::<Settings>());
            if let Ok(settings) = read {
                settings.resolve().expect("there is a working directory");
            }
        }
    });
});

fn definition(read: Result<VmDefinition, DefinitionError>) {
    let mut definition = match read {
        Ok(definition) => definition,
        Err(error) => return assert!(error.problems().iter().all(|problem| !problem.is_empty())),
    };
    definition.complete(Accel::Tcg, [7; 16]);
    let json = serde_json::to_vec(&definition).expect("it has a JSON form");
    assert_eq!(
        serde_json::from_slice::<VmDefinition>(&json).expect("it reads back"),
        definition
    );
    let given = given_to(&definition);
    let folder = VmFolder::new(Path::new("/state"), &definition.name);
    assert!(folder.path().starts_with("/state/vms") && folder.path().components().count() == 4);
    for role in [Role::Boot, Role::Incoming] {
        let arguments = arguments(&definition, &folder, &given, true, role);
        assert!(arguments.iter().all(|argument| !argument.contains('\0')));
    }
}
