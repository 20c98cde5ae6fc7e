// What plans predict times from: measured in a worker of its own, kept in a file.
import EdgeFormats
import EdgeJobs
import EdgeTensor
import EdgeTrain
import EdgeWire
import Foundation

func calibrate(_ order: WorkOrder.CalibrateOrder) throws {
    let kernels = try ProcessFacts.kernelSet()
    let start = ContinuousClock.now
    let found = try Calibration.measure(
        kernels, ComputeType(order.precision) ?? kernels.preferredComputeType, threads: order.threads,
        seconds: { (ContinuousClock.now - start) / .seconds(1) },
        directory: order.path.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/"))
    try AtomicFile.write(to: order.path, [UInt8](try JSONEncoder().encode(found)))
}

/// Nil when there is none, or none that this program can read: then it is as if it had not been measured.
func calibration(at path: String?) -> Calibration? {
    guard let path, let data = FileManager.default.contents(atPath: path) else { return nil }
    return try? JSONDecoder().decode(Calibration.self, from: data)
}
