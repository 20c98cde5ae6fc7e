// RFC 9457 problem details: the only error body of the API, and the error of a failed job.

/// An error with its numbers. `type` is `urn:edgetune:problem:` + one of `Kind`.
package struct Problem: Codable, Error, Equatable, Sendable {
    package enum Kind: String, CaseIterable, Sendable {
        case badRequest = "bad-request"
        case unknownKey = "unknown-key"
        case invalidValue = "invalid-value"
        case insufficientMemory = "insufficient-memory"
        case insufficientDisk = "insufficient-disk"
        case unsupportedModel = "unsupported-model"
        case badDataset = "bad-dataset"
        case badAdapter = "bad-adapter"
        case notFound = "not-found"
        case wrongState = "wrong-state"
        case conflict = "conflict"
        case notPermitted = "not-permitted"
        case digestMismatch = "digest-mismatch"
        case tooLarge = "too-large"
        case queueFull = "queue-full"
        case cursorExpired = "cursor-expired"
        case nonFinite = "non-finite"
        case planExceeded = "plan-exceeded"
        case workerKilled = "worker-killed"
        case workerCrashed = "worker-crashed"
        case internalError = "internal-error"

        package var title: String {
            switch self {
            case .badRequest: "The request cannot be read"
            case .unknownKey: "Unknown key"
            case .invalidValue: "A value is out of range"
            case .insufficientMemory: "Does not fit the memory budget"
            case .insufficientDisk: "Not enough disk space"
            case .unsupportedModel: "The model cannot be trained"
            case .badDataset: "The data set cannot be used"
            case .badAdapter: "The adapter cannot be used"
            case .notFound: "Not found"
            case .wrongState: "Not possible in this state"
            case .conflict: "Conflicts with what exists"
            case .notPermitted: "Not permitted"
            case .digestMismatch: "Content differs from its digest"
            case .tooLarge: "Over a limit"
            case .queueFull: "The queue is full"
            case .cursorExpired: "These events are no longer kept"
            case .nonFinite: "The loss or a gradient is not finite"
            case .planExceeded: "More memory was used than planned"
            case .workerKilled: "The worker was killed"
            case .workerCrashed: "The worker crashed"
            case .internalError: "Internal error"
            }
        }

        package var status: Int {
            switch self {
            case .badRequest, .unknownKey: 400
            case .invalidValue, .unsupportedModel, .badDataset, .badAdapter, .insufficientMemory, .digestMismatch: 422
            case .notFound: 404
            case .wrongState, .conflict: 409
            case .notPermitted: 403
            case .tooLarge: 413
            case .queueFull: 429
            case .cursorExpired: 410
            case .insufficientDisk: 507
            case .nonFinite, .planExceeded, .workerKilled, .workerCrashed, .internalError: 500
            }
        }
    }

    package static let typePrefix = "urn:edgetune:problem:"

    package var type: String
    package var title: String
    package var status: Int
    /// What happened, with its numbers, in one sentence.
    package var detail: String
    /// What the user can do.
    package var hint: String?
    package var requiredBytes: UInt64?
    package var budgetBytes: UInt64?

    package init(
        _ kind: Kind, _ detail: String, hint: String? = nil, requiredBytes: UInt64? = nil, budgetBytes: UInt64? = nil
    ) {
        type = Self.typePrefix + kind.rawValue
        title = kind.title
        status = kind.status
        self.detail = detail
        self.hint = hint
        self.requiredBytes = requiredBytes
        self.budgetBytes = budgetBytes
    }

    /// The machine's and not the request's: the same may succeed another time.
    package var mayPass: Bool {
        switch kind {
        case .insufficientMemory, .insufficientDisk, .workerKilled, .workerCrashed, .internalError: true
        default: false
        }
    }

    package var kind: Kind? {
        type.hasPrefix(Self.typePrefix) ? Kind(rawValue: String(type.dropFirst(Self.typePrefix.count))) : nil
    }
}
