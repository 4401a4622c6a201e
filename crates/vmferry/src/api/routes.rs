//! One function a route.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    response::Response,
};
use futures_util::stream;
use tokio::sync::watch;
use vmferry_core::wire::hello::MigrationId;

use super::{
    error::{ApiError, ErrorBody, ErrorCode},
    migration::{MigrateRequest, MigrationView},
    ndjson,
    types::{Event, HostView, IndexQuery, IndexView, ResolveRequest, ResolveView, StopQuery, VmView},
};
use crate::{
    agent::{Agent, AgentError},
    migrate::resolve,
    vm::VmDefinition,
};

type Answer<T> = Result<Json<T>, ApiError>;

pub(super) async fn no_such_route() -> ApiError {
    ApiError::new(
        ErrorCode::NoSuchRoute,
        "there is no such route; GET /v1/openapi.json lists them",
    )
}

/// This host and its agent.
#[utoipa::path(get, path = "/v1/host", responses((status = 200, body = HostView), (status = 500, body = ErrorBody)))]
pub(super) async fn host(State(agent): State<Arc<Agent>>) -> Answer<HostView> {
    Ok(Json(agent.host_view()?))
}

/// This host's VMs, by name.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = [VmView])))]
pub(super) async fn list_vms(State(agent): State<Arc<Agent>>) -> Json<Vec<VmView>> {
    Json(agent.registry.views())
}

/// What is indexed, so that pages that stand in it need not be sent.
#[utoipa::path(get, path = "/v1/index", params(IndexQuery), responses((status = 200, body = [IndexView])))]
pub(super) async fn index(
    State(agent): State<Arc<Agent>>,
    query: Result<Query<IndexQuery>, QueryRejection>,
) -> Answer<Vec<IndexView>> {
    let Query(IndexQuery { wait }) = query?;
    if wait {
        agent.content.look(&agent).await;
        tokio::select! {
            // Who waits for a scan must not hold up the end, which is what cancels it.
            () = agent.ending() => {}
            () = agent.content.settled() => {}
        }
    }
    Ok(Json(agent.content.views()))
}

/// Start a VM.
#[utoipa::path(
    post, path = "/v1/vms", request_body = VmDefinition,
    responses(
        (status = 201, body = VmView),
        (status = 409, body = ErrorBody, description = "the name is taken"),
        (status = 422, body = ErrorBody, description = "the definition is wrong; the reasons name every problem"),
        (status = 502, body = ErrorBody, description = "QEMU does not start"),
    )
)]
pub(super) async fn run_vm(
    State(agent): State<Arc<Agent>>,
    body: Bytes,
) -> Result<(StatusCode, Json<VmView>), ApiError> {
    let definition = VmDefinition::from_json(&body).map_err(|e| AgentError::BadDefinition(e.problems()))?;
    Ok((StatusCode::CREATED, Json(agent.run(definition).await?)))
}

/// One VM.
#[utoipa::path(
    get, path = "/v1/vms/{name}", params(("name" = String, Path, description = "the VM's name")),
    responses((status = 200, body = VmView), (status = 404, body = ErrorBody))
)]
pub(super) async fn get_vm(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Answer<VmView> {
    Ok(Json(agent.registry.view(&name)?))
}

/// End a VM as if its power were cut, and forget it.
#[utoipa::path(
    delete, path = "/v1/vms/{name}", params(("name" = String, Path, description = "the VM's name"), StopQuery),
    responses(
        (status = 200, body = VmView),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "a migration is moving it, and `force` is not set"),
    )
)]
pub(super) async fn stop_vm(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    query: Result<Query<StopQuery>, QueryRejection>,
) -> Answer<VmView> {
    let Query(StopQuery { force }) = query?;
    Ok(Json(agent.stop(&name, force).await?))
}

/// Begin to move a VM to another host.
#[utoipa::path(
    post, path = "/v1/vms/{name}/migrate", params(("name" = String, Path, description = "the VM's name")),
    request_body = MigrateRequest,
    responses(
        (status = 202, body = MigrationView, description = "it has begun; its id is in the answer"),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "it is being migrated already, or does not run"),
    )
)]
pub(super) async fn migrate_vm(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    request: Result<Json<MigrateRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<MigrationView>), ApiError> {
    let Json(request) = request?;
    Ok((StatusCode::ACCEPTED, Json(agent.migrate(&name, request)?)))
}

/// Cancel the migration that moves a VM away.
#[utoipa::path(
    post, path = "/v1/vms/{name}/cancel", params(("name" = String, Path, description = "the VM's name")),
    responses(
        (status = 202, body = MigrationView, description = "it was asked to; its end is in its report"),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "no migration is moving it"),
    )
)]
pub(super) async fn cancel_vm(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<MigrationView>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(agent.cancel(&name)?)))
}

/// The handover of a VM that waits for a host that may be gone for ever.
#[utoipa::path(
    get, path = "/v1/vms/{name}/resolve", params(("name" = String, Path, description = "the VM's name")),
    responses(
        (status = 200, body = ResolveView),
        (status = 409, body = ErrorBody, description = "there is no such handover"),
    )
)]
pub(super) async fn get_resolve(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Answer<ResolveView> {
    Ok(Json(resolve::view(&agent, &name).await?))
}

/// Decide which copy of a VM is the VM, after the other host is gone for ever. What must be true is in what `GET` answers.
#[utoipa::path(
    post, path = "/v1/vms/{name}/resolve", params(("name" = String, Path, description = "the VM's name")),
    request_body = ResolveRequest,
    responses(
        (status = 202, body = ResolveView, description = "it is decided"),
        (status = 400, body = ErrorBody, description = "the host is neither of the two"),
        (status = 409, body = ErrorBody, description = "there is no such handover"),
        (status = 503, body = ErrorBody, description = "the arbiter can't be told"),
    )
)]
pub(super) async fn resolve_vm(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    request: Result<Json<ResolveRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<ResolveView>), ApiError> {
    let Json(request) = request?;
    Ok((
        StatusCode::ACCEPTED,
        Json(resolve::decide(&agent, &name, &request).await?),
    ))
}

/// The migrations away from this host: those that run and the last ones that ended, the earliest first.
#[utoipa::path(get, path = "/v1/migrations", responses((status = 200, body = [MigrationView])))]
pub(super) async fn list_migrations(State(agent): State<Arc<Agent>>) -> Json<Vec<MigrationView>> {
    Json(agent.migrations.list())
}

/// One migration: its progress, and its report once it is over.
#[utoipa::path(
    get, path = "/v1/migrations/{id}", params(("id" = String, Path, description = "the migration's id")),
    responses((status = 200, body = MigrationView), (status = 404, body = ErrorBody))
)]
pub(super) async fn get_migration(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Answer<MigrationView> {
    let view = find_migration(&agent, id)?.borrow().clone();
    Ok(Json(view))
}

/// One migration's views as they change, a JSON object a line; the last one has the report.
#[utoipa::path(
    get, path = "/v1/migrations/{id}/events", params(("id" = String, Path, description = "the migration's id")),
    responses(
        (status = 200, body = MigrationView, content_type = "application/x-ndjson"),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn migration_events(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let mut latest = find_migration(&agent, id)?;
    latest.mark_changed();
    let views = stream::unfold(Some(latest), async |latest| {
        let mut latest = latest?;
        latest.changed().await.ok()?;
        let view = latest.borrow_and_update().clone();
        let rest = view.report.is_none().then_some(latest);
        Some((view, rest))
    });
    Ok(ndjson::response(&agent, views))
}

/// What happens on this host from now on, a JSON object a line.
#[utoipa::path(
    get, path = "/v1/events",
    responses((status = 200, body = Event, content_type = "application/x-ndjson"))
)]
pub(super) async fn events(State(agent): State<Arc<Agent>>) -> Response {
    let events = stream::unfold(agent.events.listen(), async |mut listener| {
        listener.next().await.map(|event| (event, listener))
    });
    ndjson::response(&agent, events)
}

fn find_migration(agent: &Agent, id: String) -> Result<watch::Receiver<MigrationView>, AgentError> {
    MigrationId::try_from(id.clone())
        .ok()
        .and_then(|id| agent.migrations.get(id))
        .ok_or(AgentError::UnknownMigration(id))
}
