// Plans that workers have made lately. Whoever looks at a plan before submitting asks for the same one twice, and a worker reads the
// model's vocabulary and every line of the data set for it: minutes of a small board's core when the data set is large.
import EdgeFormats
import EdgeJobs
import EdgeWire
import Foundation
import Synchronization

/// The newest of them, each by all that decides it. Refusals are not kept: what was missing may be there a moment later.
package final class RecentPlans: Sendable {
    /// SHA-256 over it.
    package typealias Key = [UInt8]

    private struct Entry {
        let key: Key
        let plan: PlanReport
    }

    /// The one used last at the end.
    private let entries = Mutex<[Entry]>([])
    private let limit: Int

    package init(limit: Int = 64) { self.limit = limit }

    package func plan(_ key: Key) -> PlanReport? {
        entries.withLock { entries in
            guard let place = entries.firstIndex(where: { $0.key == key }) else { return nil }
            let entry = entries.remove(at: place)
            entries.append(entry)
            return entry.plan
        }
    }

    package func keep(_ plan: PlanReport, for key: Key) {
        entries.withLock { entries in
            entries.removeAll { $0.key == key }
            entries.append(Entry(key: key, plan: plan))
            if entries.count > limit { entries.removeFirst() }
        }
    }

    /// Blobs are named by their contents, so the order says all but what its worker looks up by itself. Nothing of the data is in it.
    ///
    /// - Parameters:
    ///   - freeDisk: In bytes; plans differ by whether layers' inputs may go to a file, for which its magnitude is enough: a run plans
    ///     again when it starts.
    ///   - modelBytes: Of the model's file, which is cached when it fits beside the job.
    package static func key(_ order: WorkOrder.TrainOrder, freeDisk: UInt64, modelBytes: UInt64) throws -> Key {
        var order = order
        // None of these is read by the plan.
        (order.request.name, order.request.priority, order.request.maxTime, order.request.runBetween) = (nil, nil, nil, nil)
        order.request.learningRate = 1
        let isCached = staysCached(modelBytes, beside: order.budgetBytes, available: order.availableBytes)
        order.availableBytes = nil
        let calibration = try order.calibrationPath.flatMap(modificationTime)
        var digest = SHA256()
        digest.update(Array(try Wire.encoder().encode(order)))
        digest.update(Array("\(isCached) \(freeDisk.leadingZeroBitCount) \(calibration ?? 0)".utf8))
        return digest.finalize()
    }

    /// In nanoseconds; nil when there is no such file.
    private static func modificationTime(_ path: String) throws -> Int? {
        var found = stat()
        guard stat(path, &found) == 0 else {
            guard errno == ENOENT else { throw Problem(.internalError, "\(path): \(String(cString: strerror(errno)))") }
            return nil
        }
        return found.st_mtim.tv_sec * 1_000_000_000 + found.st_mtim.tv_nsec
    }
}
