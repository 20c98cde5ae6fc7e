// Making one file of a model's several: their headers read, or all of it written. Which names there are, and that none of
// them is a path, `serve` has checked; the paths are those of its blobs.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeWire
import Foundation

func importPlan(_ files: [WorkOrder.SourceFile]) throws -> WorkMessage {
    let model = try modelImport(files)
    // A model that cannot be trained is refused before its weights are read.
    if let config = files.first(where: { $0.name == "config.json" }) {
        _ = try Architectures.spec(config: try ByteRegion.map(path: config.path).withBytes { Array($0) })
    }
    return .plannedImport(
        outputBytes: UInt64(model.outputBytes.bytes), peakBytes: UInt64(model.peakBytes.bytes) + ProcessFacts.idleBytes)
}

func importModel(_ order: WorkOrder.ImportOrder, _ channel: WorkChannel) throws {
    // Under its final name it is complete: `serve` went away after the writing.
    guard access(order.outputPath, F_OK) != 0 else { return }
    var said = ContinuousClock.now
    try modelImport(order.files).write(to: order.outputPath) { bytes in
        guard ContinuousClock.now - said >= .milliseconds(250) else { return }
        said = .now
        channel.send(.imported(bytes: UInt64(bytes)))
    }
}

private func modelImport(_ files: [WorkOrder.SourceFile]) throws -> ModelImport {
    try ModelImport(files: Dictionary(files.map { ($0.name, $0.path) }) { first, _ in first })
}
