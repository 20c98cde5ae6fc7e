// An export order: the artifact in the form that another program loads.
import EdgeJobs
import EdgeModel
import EdgeTrain

/// Writes the file and returns its path.
func export(_ order: WorkOrder.ExportOrder) throws -> String {
    switch order.format {
    case .config:
        try AdapterArtifact.exportConfig(order.adapterDirectory, task: order.task, to: order.outputPath)
    case .safetensors, .hubSafetensors:
        try AdapterArtifact.exportSafetensors(
            order.adapterDirectory, task: order.task, for: order.format == .safetensors ? .peft : .hub, to: order.outputPath)
    case .gguf:
        let model = try BaseModel.open(path: order.modelPath)
        try AdapterArtifact.exportGGUF(
            order.adapterDirectory, task: order.task, architecture: model.spec.ggufArchitecture, to: order.outputPath
        ) { path in
            guard let id = try? ModuleID(path: path, in: model.spec) else { return nil }
            return AdapterArtifact.GGUFTarget(
                name: id.ggufName(model.spec), rowOrder: model.spec.ggufRowOrder(id.module), inFeatures: id.inFeatures(model.spec),
                outFeatures: id.outFeatures(model.spec))
        }
    }
    return order.outputPath
}
