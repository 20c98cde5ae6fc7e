// What this board needs for each kind of work: the numbers that plans predict times from.
import ArgumentParser
import EdgeTensor
import EdgeTrain

struct CalibrateBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "calibrate", abstract: "Measure what plans predict times from.")

    @Option(help: "Worker threads.") var threads = 2
    @Option(help: "Kernel set; the strongest when absent.") var set: String?
    @Option(help: "f32, bf16, f16 or int8; what the kernel set prefers when absent.") var precision: ComputeType?
    @Option(help: "A directory of the disk to measure.") var directory: String?

    func run() throws { try Measurement.printLine(Self.measured(set, precision, threads: threads, directory: directory)) }

    static func measured(_ set: String?, _ precision: ComputeType?, threads: Int, directory: String?) throws -> Calibration {
        let kernels = try KernelSet.choose(set)
        let start = ContinuousClock.now
        return try Calibration.measure(
            kernels, precision ?? kernels.preferredComputeType, threads: threads,
            seconds: { (ContinuousClock.now - start) / .seconds(1) }, directory: directory)
    }
}
