// Exit codes and the one error type that a command ends with. Text is made here, at the edge.
import EdgeWire
import Foundation

enum ExitCode: Int32, CaseIterable {
    case ok = 0
    case failure = 1
    case jobFailed = 3
    case permission = 4
    case notFound = 5
    case conflict = 6
    case unreachable = 7
    case doesNotFit = 8
    case jobCancelled = 10
    case usage = 64
    case detached = 130

    var meaning: String {
        switch self {
        case .ok: "done"
        case .failure: "failure of any other kind"
        case .jobFailed: "the job ended as failed"
        case .permission: "no permission"
        case .notFound: "no such job, model, data set, adapter or file"
        case .conflict: "in conflict with what exists, or not possible in this state"
        case .unreachable: "edgetuned, or the hub of a pull, cannot be reached"
        case .doesNotFit: "does not fit the memory budget or the disk"
        case .jobCancelled: "the job was cancelled"
        case .usage: "a flag, a job file or a value in it is wrong"
        case .detached: "detached with Ctrl-C; the job goes on, a pull is gone on with"
        }
    }

    /// For `--help`.
    static var table: String {
        let rows = allCases.map { code in
            String(repeating: " ", count: 5 - "\(code.rawValue)".count) + "\(code.rawValue)  \(code.meaning)"
        }
        return (["EXIT CODES:"] + rows).joined(separator: "\n")
    }
}

/// What a command prints on stderr before it exits.
struct CommandFailure: Error {
    let code: ExitCode
    let message: String
    var hint: String?

    init(_ code: ExitCode, _ message: String, hint: String? = nil) {
        self.code = code
        self.message = message
        self.hint = hint
    }
}

extension CommandFailure {
    init(_ problem: Problem) {
        var message = problem.detail.isEmpty ? problem.title : problem.detail
        // A memory problem's sentence has its numbers already.
        if problem.kind != .insufficientMemory, let required = problem.requiredBytes, let budget = problem.budgetBytes {
            message += " (needs \(Amount.bytes(required)), allowed \(Amount.bytes(budget)))"
        }
        self.init(ExitCode(problem), message, hint: problem.hint)
    }

    init(_ error: DaemonError) {
        switch error {
        case .noSocket(let path):
            self.init(
                .unreachable, "edgetuned is not running (no socket at \(path))",
                hint: "start it with `systemctl start edgetuned.socket` or `edgetuned serve`")
        case .refused(let path):
            self.init(
                .unreachable, "edgetuned is not running (nobody listens at \(path))",
                hint: "start it with `systemctl start edgetuned.socket` or `edgetuned serve`")
        case .notPermitted(let path):
            self.init(
                .permission, "you may not use \(path): you are not in the group edgetune",
                hint: "sudo usermod -aG edgetune $USER, then log in again")
        case .badSocketPath(let path):
            self.init(.usage, "\(path) cannot be a socket: the path is too long")
        case .lost(let reason):
            self.init(.unreachable, "the connection to edgetuned was lost: \(reason)")
        case .timedOut(let seconds):
            self.init(.unreachable, "edgetuned did not answer within \(seconds) s")
        case .otherVersion(let daemon):
            self.init(
                .failure, "edgetuned speaks API \(daemon), this edgetune speaks \(Endpoint.version)",
                hint: "install the same release of both")
        case .problem(let problem): self.init(problem)
        case .unreadable(let reason): self.init(.failure, "edgetuned's answer cannot be read: \(reason)")
        }
    }
}

extension ExitCode {
    init(_ problem: Problem) {
        self =
            switch problem.kind {
            case .insufficientMemory, .insufficientDisk: .doesNotFit
            case .notFound: .notFound
            case .wrongState, .conflict: .conflict
            case .notPermitted: .permission
            case .badRequest, .unknownKey, .invalidValue: .usage
            case nil:
                switch problem.status {
                case 401, 403: .permission
                case 404: .notFound
                case 409: .conflict
                case 507: .doesNotFit
                default: .failure
                }
            default: .failure
            }
    }

    init(_ end: JobState) {
        self =
            switch end {
            case .failed: .jobFailed
            case .cancelled: .jobCancelled
            default: .ok
            }
    }
}
