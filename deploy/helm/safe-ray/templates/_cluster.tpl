{{/* What the restricted profile asks of every container. */}}
{{- define "safe-ray.containerSecurity" -}}
allowPrivilegeEscalation: false
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 100
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "safe-ray.env" -}}
- name: SAFE_RAY_STORAGE
  value: {{ .Values.storage.mountPath | quote }}
{{- if .Values.data.existingClaim }}
- name: SAFE_RAY_DATA
  value: {{ .Values.data.mountPath | quote }}
{{- end }}
{{- if .Values.mlflow.trackingUri }}
- name: MLFLOW_TRACKING_URI
  value: {{ .Values.mlflow.trackingUri | quote }}
{{- end }}
{{- if eq .Values.auth.mode "disabled" }}
# Said outright, since Ray may turn it on by itself.
- name: RAY_AUTH_MODE
  value: disabled
{{- end }}
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ .Values.shutdown.drainSeconds | quote }}
# Read by the process that supervises a job.
- name: RAY_JOB_STOP_WAIT_TIME_S
  value: {{ .Values.shutdown.jobStopSeconds | quote }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
A pod of a Ray node. Takes a dict: root, part, container, head (bool), node (head or a worker group).
*/}}
{{- define "safe-ray.podTemplate" -}}
{{- $root := .root -}}
{{- $node := .node -}}
metadata:
  labels:
    # KubeRay's services select by app.kubernetes.io labels of its own: none of ours here.
    {{- include "safe-ray.selector" . | nindent 4 }}
spec:
  # The autoscaler replaces pods itself.
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ $root.Values.shutdown.gracePeriodSeconds }}
  {{- if not (and .head (include "safe-ray.autoscales" $root)) }}
  # The autoscaler alone talks to the API server, from the head.
  automountServiceAccountToken: false
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 100
    fsGroup: 100
    # Changing the group of millions of files takes hours.
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and (not .head) $node.runtimeClassName }}
  runtimeClassName: {{ $node.runtimeClassName }}
  {{- end }}
  {{- with $node.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $node.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $node.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .container }}
      image: {{ include "safe-ray.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      securityContext:
        {{- include "safe-ray.containerSecurity" . | nindent 8 }}
      env:
        {{- include "safe-ray.env" $root | nindent 8 }}
        {{- if eq .part "cluster" }}
        # What a command that names no cluster.ceiling plans with.
        - name: SAFE_RAY_CEILING
          value: {{ include "safe-ray.ceiling" $root | quote }}
        {{- end }}
      {{- if or $root.Values.mlflow.secretName $root.Values.envFrom }}
      envFrom:
        {{- with $root.Values.mlflow.secretName }}
        - secretRef:
            name: {{ . }}
        {{- end }}
        {{- with $root.Values.envFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- if .head }}
      ports:
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: client
          containerPort: 10001
        - name: metrics
          containerPort: 8080
        {{- if eq .part "serve" }}
        # By this name KubeRay's service for clients finds it.
        - name: serve
          containerPort: 8000
        {{- end }}
      {{- end }}
      # Requests are limits: Ray plans with what the node says it has.
      resources:
        {{- range list "requests" "limits" }}
        {{ . }}:
          cpu: {{ $node.cpus | quote }}
          memory: {{ $node.memory }}
          {{- if $node.gpus }}
          {{ $node.gpuResource }}: {{ $node.gpus | quote }}
          {{- end }}
        {{- end }}
      volumeMounts:
        - name: storage
          mountPath: {{ $root.Values.storage.mountPath }}
        {{- if $root.Values.data.existingClaim }}
        - name: data
          mountPath: {{ $root.Values.data.mountPath }}
          readOnly: true
        {{- end }}
  volumes:
    - name: storage
      persistentVolumeClaim:
        claimName: {{ include "safe-ray.claim" $root }}
    {{- if $root.Values.data.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ $root.Values.data.existingClaim }}
        readOnly: true
    {{- end }}
{{- end -}}

{{/* What Ray is started with: the object store, and what is left of the memory for tasks. */}}
{{- define "safe-ray.memoryParams" -}}
object-store-memory: {{ mul (include "safe-ray.mebibytes" .objectStore | int64) 1048576 | toString | quote }}
memory: {{ mul (include "safe-ray.taskMebibytes" . | int64) 1048576 | toString | quote }}
{{- end -}}

{{/*
The spec of a RayCluster, which a RayJob and a RayService have within. Takes a dict: root, part.
*/}}
{{- define "safe-ray.clusterSpec" -}}
{{- $root := .root -}}
{{- $part := .part -}}
{{- $scales := include "safe-ray.autoscales" $root -}}
{{- if ge (int $root.Values.shutdown.drainSeconds) (int $root.Values.shutdown.gracePeriodSeconds) -}}
{{- fail "shutdown.drainSeconds must be less than shutdown.gracePeriodSeconds, after which the pod is killed." -}}
{{- end -}}
rayVersion: {{ $root.Values.rayVersion | quote }}
authOptions:
  mode: {{ $root.Values.auth.mode }}
  {{- if and (eq $root.Values.auth.mode "token") $root.Values.auth.secretName }}
  secretName: {{ $root.Values.auth.secretName }}
  {{- end }}
enableInTreeAutoscaling: {{ ternary "true" "false" (eq $scales "true") }}
{{- if $scales }}
autoscalerOptions:
  version: v2
  upscalingMode: Default
  idleTimeoutSeconds: {{ $root.Values.autoscaling.idleTimeoutSeconds }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  securityContext:
    {{- include "safe-ray.containerSecurity" . | nindent 4 }}
  resources:
    requests:
      {{- toYaml $root.Values.autoscaling.resources | nindent 6 }}
    limits:
      {{- toYaml $root.Values.autoscaling.resources | nindent 6 }}
{{- end }}
headGroupSpec:
  rayStartParams:
    # The driver and the searcher need none of Ray's CPUs, and no work may take theirs.
    num-cpus: "0"
    dashboard-host: 0.0.0.0
    {{- include "safe-ray.memoryParams" (dict "name" "head" "memory" $root.Values.head.memory "objectStore" $root.Values.head.objectStore) | nindent 4 }}
  template:
    {{- include "safe-ray.podTemplate" (dict "root" $root "part" $part "container" "ray-head" "head" true "node" $root.Values.head) | nindent 4 }}
workerGroupSpecs:
  {{- range $root.Values.workerGroups }}
  - groupName: {{ .name }}
    replicas: {{ if $scales }}{{ .minReplicas }}{{ else }}{{ .maxReplicas }}{{ end }}
    minReplicas: {{ if $scales }}{{ .minReplicas }}{{ else }}{{ .maxReplicas }}{{ end }}
    maxReplicas: {{ .maxReplicas }}
    {{- if gt (int .minReplicas) (int .maxReplicas) }}
    {{- fail (printf "The group %q of workerGroups has minReplicas %d above maxReplicas %d." .name (int .minReplicas) (int .maxReplicas)) }}
    {{- end }}
    {{- if $scales }}
    idleTimeoutSeconds: {{ .idleTimeoutSeconds }}
    {{- if .priority }}
    priority: {{ .priority }}
    {{- end }}
    {{- end }}
    # Labels of the pods, and of the nodes in Ray.
    labels:
      ray.io/market-type: {{ ternary "spot" "on-demand" .spot }}
    rayStartParams:
      num-cpus: {{ .cpus | quote }}
      num-gpus: {{ .gpus | quote }}
      {{- include "safe-ray.memoryParams" (dict "name" (printf "workerGroups %q" .name) "memory" .memory "objectStore" .objectStore) | nindent 6 }}
    template:
      {{- include "safe-ray.podTemplate" (dict "root" $root "part" $part "container" "ray-worker" "head" false "node" .) | nindent 6 }}
  {{- end }}
{{- end -}}
