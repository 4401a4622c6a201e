//! The HTTP API on the agent's unix socket, and over TLS if it is to be: JSON, described by an OpenAPI document at `/v1/openapi.json`.
//!
//! | module | what |
//! |---|---|
//! | [`types`], [`migration`] | what is said and asked |
//! | [`access`] | who may |
//! | [`error`] | what is answered when it cannot be done |
//! | `routes` | one function a route |
//! | `remote` | the API over TLS |
//! | `ndjson` | streams of JSON lines |

pub mod access;
pub mod error;
pub mod migration;
mod ndjson;
mod remote;
mod report;
mod routes;
pub mod types;

use std::{fmt::Debug, io, sync::Arc};

use axum::Router;
use axum::serve::Listener;
pub use remote::RemoteListener;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::agent::Agent;

/// Serves the API until `stop` resolves and the requests under way are answered.
///
/// # Errors
/// The system's.
pub async fn serve<L>(listener: L, agent: Arc<Agent>, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()>
where
    L: Listener<Addr: Debug>,
{
    let (router, document) = router();
    let router = router
        .route(
            "/v1/openapi.json",
            axum::routing::get(async move || axum::Json(document)),
        )
        .fallback(routes::no_such_route)
        .method_not_allowed_fallback(routes::no_such_route)
        .with_state(agent);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

/// The routes and their description, made from the same list.
fn router() -> (Router<Arc<Agent>>, OpenApi) {
    let (router, mut document) = OpenApiRouter::new()
        .routes(routes!(routes::host))
        .routes(routes!(routes::index))
        .routes(routes!(routes::list_vms, routes::run_vm))
        .routes(routes!(routes::get_vm, routes::stop_vm))
        .routes(routes!(routes::migrate_vm))
        .routes(routes!(routes::cancel_vm))
        .routes(routes!(routes::get_resolve, routes::resolve_vm))
        .routes(routes!(routes::list_migrations))
        .routes(routes!(routes::get_migration))
        .routes(routes!(routes::migration_events))
        .routes(routes!(routes::events))
        .split_for_parts();
    document.info.title = "vmferry agent".to_owned();
    document.info.description = Some("Owns the VMs of one host and moves them to others.".to_owned());
    (router, document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_openapi_document_lists_each_route() {
        let (_, document) = router();
        let document = serde_json::to_value(&document).unwrap();
        let mut operations: Vec<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(move |method| format!("{method} {path}"))
            })
            .collect();
        operations.sort();
        assert_eq!(
            operations,
            [
                "delete /v1/vms/{name}",
                "get /v1/events",
                "get /v1/host",
                "get /v1/index",
                "get /v1/migrations",
                "get /v1/migrations/{id}",
                "get /v1/migrations/{id}/events",
                "get /v1/vms",
                "get /v1/vms/{name}",
                "get /v1/vms/{name}/resolve",
                "post /v1/vms",
                "post /v1/vms/{name}/cancel",
                "post /v1/vms/{name}/migrate",
                "post /v1/vms/{name}/resolve",
            ]
        );
    }

    #[test]
    fn the_openapi_document_defines_every_schema_that_it_refers_to() {
        let (_, document) = router();
        let text = serde_json::to_string(&document).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let references: Vec<&str> = text
            .split("\"$ref\":\"#/components/schemas/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert!(
            references.contains(&"VmView") && references.contains(&"Report"),
            "{references:?}"
        );
        for name in references {
            assert!(
                document["components"]["schemas"].get(name).is_some(),
                "{name} is not defined"
            );
        }
    }
}
