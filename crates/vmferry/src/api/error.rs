//! What the API answers when it cannot do what was asked.

use axum::{
    Json,
    extract::rejection::{JsonRejection, QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{agent::AgentError, arbiter::ArbiterError};

/// The body of every answer that is not a success: `{"error": {…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorView,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what went wrong, and what to do.
    pub message: String,
    /// Each single reason, where there are several.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// The kinds of error, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    BadRequest,
    /// No route has this path and method.
    NoSuchRoute,
    /// The VM's definition is wrong; the reasons name every problem.
    BadDefinition,
    /// No VM of this agent has that name.
    UnknownVm,
    /// No migration of this agent has that id.
    UnknownMigration,
    /// The name is in use by a VM that runs.
    NameTaken,
    /// A migration is moving the VM.
    Migrating,
    /// No migration is moving the VM.
    NotMigrating,
    /// The VM is not in a state in which this can be done.
    WrongState,
    /// QEMU could not be started or does not answer.
    Qemu,
    /// The arbiter says that another host has the VM.
    OwnedElsewhere,
    /// The arbiter does not answer.
    Arbiter,
    /// No handover of the VM waits to be decided.
    NothingToResolve,
    /// The agent itself failed.
    Internal,
}

impl ErrorCode {
    fn status(self) -> StatusCode {
        match self {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::NoSuchRoute | ErrorCode::UnknownVm | ErrorCode::UnknownMigration => StatusCode::NOT_FOUND,
            ErrorCode::BadDefinition => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::NameTaken
            | ErrorCode::Migrating
            | ErrorCode::NotMigrating
            | ErrorCode::WrongState
            | ErrorCode::OwnedElsewhere
            | ErrorCode::NothingToResolve => StatusCode::CONFLICT,
            ErrorCode::Arbiter => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Qemu => StatusCode::BAD_GATEWAY,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An error on its way out.
#[derive(Debug)]
pub struct ApiError(pub ErrorView);

impl ApiError {
    /// An error without single reasons.
    pub fn new(code: ErrorCode, message: impl ToString) -> Self {
        ApiError(ErrorView {
            code,
            message: message.to_string(),
            reasons: Vec::new(),
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0.code.status(), Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::BadDefinition(_) => ErrorCode::BadDefinition,
            AgentError::BadMigrateRequest(_) => ErrorCode::BadRequest,
            AgentError::UnknownVm(_) => ErrorCode::UnknownVm,
            AgentError::UnknownMigration(_) => ErrorCode::UnknownMigration,
            AgentError::NameTaken(_) => ErrorCode::NameTaken,
            AgentError::Migrating { .. } => ErrorCode::Migrating,
            AgentError::NotMigrating(_) => ErrorCode::NotMigrating,
            AgentError::WrongState { .. } => ErrorCode::WrongState,
            AgentError::Launch { .. } => ErrorCode::Qemu,
            AgentError::Arbiter(ArbiterError::OwnedElsewhere { .. }) => ErrorCode::OwnedElsewhere,
            AgentError::Arbiter(_) => ErrorCode::Arbiter,
            AgentError::NothingToResolve { .. } => ErrorCode::NothingToResolve,
            AgentError::NoSuchHost { .. } => ErrorCode::BadRequest,
            AgentError::Journal(_) | AgentError::Stop { .. } | AgentError::Host(_) | AgentError::Random(_) => {
                ErrorCode::Internal
            }
        };
        let message = error.to_string();
        let reasons = match error {
            AgentError::BadDefinition(problems) | AgentError::BadMigrateRequest(problems) => problems,
            _ => Vec::new(),
        };
        ApiError(ErrorView { code, message, reasons })
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        ApiError::new(ErrorCode::BadRequest, rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        ApiError::new(ErrorCode::BadRequest, rejection.body_text())
    }
}
