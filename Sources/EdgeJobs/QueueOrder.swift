// Who is next: a pure value. Priority first; then the user who has had less of the machine; then who asked first.
import Foundation

/// A job as far as its place among others goes.
package struct QueueEntry: Equatable, Sendable {
    package let id: String
    package let ownerUid: UInt32
    package let priority: Int
    /// Counts up with every submit.
    package let place: Int

    package init(id: String, ownerUid: UInt32, priority: Int, place: Int) {
        self.id = id
        self.ownerUid = ownerUid
        self.priority = priority
        self.place = place
    }
}

package enum FairShare {
    /// Running time counts half after this many seconds: a week ago is not today's claim.
    package static let halfLifeSeconds = 7.0 * 86400

    /// What `seconds` of running, last added to `age` seconds ago, count now. A clock that was set back makes nothing younger than
    /// new.
    package static func decayed(_ seconds: Double, age: Double) -> Double {
        seconds * exp2(-max(0, age) / halfLifeSeconds)
    }

    /// - Parameter usage: seconds of running per user, decayed; absent: none.
    package static func order(_ entries: [QueueEntry], usage: [UInt32: Double]) -> [QueueEntry] {
        entries.sorted { a, b in
            if a.priority != b.priority { return a.priority > b.priority }
            let (used, others) = (usage[a.ownerUid] ?? 0, usage[b.ownerUid] ?? 0)
            if used != others { return used < others }
            return a.place < b.place
        }
    }
}
