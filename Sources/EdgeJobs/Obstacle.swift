// Why a job does not run, in one form for everything that can be in its way: the machine, its hours, other jobs, its own
// crashes. Who finds an obstacle is the daemon (`JobQueueSettings.look`), the queue, or for memory the worker itself.

/// Where a job stands when it is asked about. What lets a run go on is less than what lets one start: a start must not meet
/// the limit that ended the run before it.
package enum RunPhase: Sendable { case start, run }

package struct Obstacle: Equatable, Sendable {
    package enum Kind: String, Sendable {
        case memory
        case heat = "a cooler board"
        case power = "mains power"
        case hours = "its hours"
        case disk = "disk space"
        case retry = "another try"
        case turn = "its turn"
        /// It goes on at once, with them.
        case company = "others to train together with"
    }

    package let kind: Kind
    /// The figures.
    package let detail: String

    package init(_ kind: Kind, _ detail: String) {
        self.kind = kind
        self.detail = detail
    }

    private static let opening = "waits for "

    package var reason: String { "\(Self.opening)\(kind.rawValue)" + (detail.isEmpty ? "" : ": \(detail)") }

    package static func isReason(_ text: String?) -> Bool { text?.hasPrefix(opening) == true }
}
