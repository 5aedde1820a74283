{{/* Envoy's configuration for a sidecar, with the backends from the values. */}}
{{- define "router.envoyConfig" -}}
{{- if .Values.envoy.config }}
{{- .Values.envoy.config }}
{{- else }}
{{- $pools := list }}
{{- range (include "router.pools" . | fromJson).pools }}{{ $pools = append $pools .name }}{{ end }}
{{- if ne (join "," $pools) "short,long" }}
{{- fail "gateway.type: sidecar; expected the pools short and long, or envoy.config for others (extproc routes --for envoy)" }}
{{- end }}
{{- $text := .Files.Get (.Values.envoy.accessLog | ternary "files/envoy-access-log.yaml" "files/envoy.yaml") }}
{{- $workers := include "router.workers" . | int }}
{{- if gt $workers 1 }}
{{- $line := "        - endpoint: {address: {pipe: {path: /run/extproc/extproc.sock}}}\n" }}
{{- $lines := "" }}
{{- range until $workers }}
{{- $lines = print $lines (replace "extproc.sock" (printf "extproc.sock.%d" .) $line) }}
{{- end }}
{{- $text = replace $line $lines $text }}
{{- end }}
{{- range $pools }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .) | fromJson }}
{{- $text = replace (printf "address: vllm-%s, port_value: 8000}" .) (printf "address: %s, port_value: %v}" $backend.service $backend.port) $text }}
{{- end }}
{{- $text }}
{{- end }}
{{- end }}

{{/* An EnvoyFilter for the Gateway: dict "root" $ "suffix" SUFFIX "patches" PATCHES. It is in
the Gateway's namespace, so its name includes the router's. */}}
{{- define "router.envoyFilter" -}}
{{- $gateway := .root.Values.gateway }}
{{- $classic := eq $gateway.type "istio" }}
{{- $namespace := $classic | ternary $gateway.namespace $gateway.parentNamespace }}
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  {{- include "router.metadata" (dict "root" .root "namespace" $namespace "name" (printf "%s-%s%s" (include "router.name" .root) .root.Release.Namespace .suffix)) | nindent 2 }}
spec:
  {{- if $classic }}
  workloadSelector:
    labels:
      {{- if not $gateway.selector }}
      {{- fail "gateway.selector: {}; expected a label of the gateway's pods, as without one it is every gateway of the mesh" }}
      {{- end }}
      {{- toYaml $gateway.selector | nindent 6 }}
  {{- else }}
  targetRefs:
  - group: gateway.networking.k8s.io
    kind: Gateway
    name: {{ $gateway.name | quote }}
  {{- end }}
  configPatches:
  {{- .patches | nindent 2 }}
{{- end }}

{{/* A filter's name, unique among all releases: dict "root" $ "filter" NAME. */}}
{{- define "router.filterName" -}}
{{- printf "%s/%s/%s" .root.Release.Namespace (include "router.name" .root) .filter | quote }}
{{- end }}

{{/* The ext_proc filter, early header removal and buffer limit as EnvoyFilter patches. */}}
{{- define "router.envoyFilterPatches" -}}
- applyTo: HTTP_FILTER
  match:
    context: GATEWAY
    listener:
      filterChain:
        filter:
          name: envoy.filters.network.http_connection_manager
          {{- if ne .Values.gateway.type "inference-extension" }}
          subFilter: {name: envoy.filters.http.router}
          {{- end }}
  patch:
    # The Inference Extension's picker is also an ext_proc filter and must see the route
    # that this filter chooses.
    operation: {{ eq .Values.gateway.type "inference-extension" | ternary "INSERT_FIRST" "INSERT_BEFORE" }}
    value:
      name: {{ include "router.filterName" (dict "root" $ "filter" "router") }}
      disabled: true
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
        grpc_service:
          envoy_grpc:
            cluster_name: outbound|9002||{{ include "router.host" . }}
          timeout: 0s
        processing_mode:
          request_header_mode: SEND
          request_body_mode: NONE
          request_trailer_mode: SKIP
          response_header_mode: SKIP
          response_body_mode: NONE
          response_trailer_mode: SKIP
        allow_mode_override: true
        message_timeout: {{ include "router.timeout" . }}
        failure_mode_allow: true
        disable_immediate_response: true
        mutation_rules:
          disallow_all: true
          allow_expression: {regex: "x-llm-.*|content-length"}
        forward_rules:
          allowed_headers:
            patterns:
            - exact: ":path"
            - exact: ":method"
            - exact: content-type
            - exact: content-length
            - exact: content-encoding
            - exact: x-request-id
            - exact: traceparent
            - exact: tracestate
            - exact: x-llm-category
            - exact: ":status"
            - exact: transfer-encoding
            - exact: x-envoy-attempt-count
        metadata_options:
          receiving_namespaces: {untyped: [extproc.token_budget]}
- applyTo: NETWORK_FILTER
  match:
    context: GATEWAY
    listener:
      filterChain:
        filter: {name: envoy.filters.network.http_connection_manager}
  patch:
    operation: MERGE
    value:
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        early_header_mutation_extensions:
        - name: envoy.http.early_header_mutation.header_mutation
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
            mutations:
            - remove: x-llm-pool
            - remove: x-llm-budget
            {{- if .Values.config.models }}
            - remove: x-llm-model
            {{- end }}
        {{- if eq .Values.gateway.type "inference-extension" }}
        http2_protocol_options:
          initial_stream_window_size: {{ include "router.bufferLimit" . }}
          initial_connection_window_size: {{ mul 4 (include "router.bufferLimit" . | int64) }}
        {{- end }}
{{- if eq .Values.gateway.type "inference-extension" }}
- applyTo: LISTENER
  match:
    context: GATEWAY
  patch:
    operation: MERGE
    value:
      per_connection_buffer_limit_bytes: {{ include "router.bufferLimit" . }}
{{- end }}
{{- range (include "router.routes" . | fromJson).routes }}
- applyTo: HTTP_ROUTE
  match:
    context: GATEWAY
    routeConfiguration:
      vhost:
        route: {name: {{ include "router.routeName" (dict "root" $ "route" .name) }}}
  patch:
    operation: MERGE
    value:
      typed_per_filter_config:
        {{ include "router.filterName" (dict "root" $ "filter" "router") }}:
          "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
          config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute
            overrides: {}
      {{- if ne $.Values.gateway.type "inference-extension" }}
      request_body_buffer_limit: {{ include "router.bufferLimit" $ }}
      {{- end }}
{{- end }}
- applyTo: CLUSTER
  match:
    context: GATEWAY
    cluster:
      service: {{ include "router.host" . }}
      portNumber: 9002
  patch:
    operation: MERGE
    value:
      ignore_health_on_host_removal: true
      close_connections_on_host_health_failure: true
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              initial_stream_window_size: 16777216
              initial_connection_window_size: 25165824
              connection_keepalive: {interval: 1s, timeout: 2s}
      health_checks:
      - timeout: 1s
        interval: 2s
        no_traffic_interval: 1s
        unhealthy_interval: 0.5s
        unhealthy_threshold: 2
        healthy_threshold: 1
        grpc_health_check: {service_name: envoy.service.ext_proc.v3.ExternalProcessor}
{{- end }}

{{/* A 403 for the loading of adapters on the routes of an HTTPRoute, which can neither answer
a request itself in Istio, nor match an expression before a prefix. */}}
{{- define "router.adapterPatches" -}}
- applyTo: HTTP_FILTER
  match:
    context: GATEWAY
    listener:
      filterChain:
        filter: {name: envoy.filters.network.http_connection_manager}
  patch:
    operation: INSERT_FIRST
    value:
      name: {{ include "router.filterName" (dict "root" $ "filter" "adapters") }}
      disabled: true
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
{{- range (include "router.routes" . | fromJson).routes }}
- applyTo: HTTP_ROUTE
  match:
    context: GATEWAY
    routeConfiguration:
      vhost:
        route: {name: {{ include "router.routeName" (dict "root" $ "route" .name) }}}
  patch:
    operation: MERGE
    value:
      typed_per_filter_config:
        {{ include "router.filterName" (dict "root" $ "filter" "adapters") }}:
          "@type": type.googleapis.com/envoy.config.route.v3.FilterConfig
          config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute
            rbac:
              rules:
                action: DENY
                policies:
                  adapters:
                    permissions:
                    - url_path: {path: {safe_regex: {regex: {{ include "router.adapters" $ }}}}}
                    principals:
                    - any: true
{{- end }}
{{- end }}

{{/* The retries of overflows as EnvoyFilter patches, for each pool that is not its model's
largest: the route leads to an aggregate of the pool and the largest one. */}}
{{- define "router.overflowPatches" -}}
{{- range (include "router.pools" . | fromJson).pools }}
{{- if ne .name .largest }}
{{- $values := $.Files.Get "files/istio-overflow.yaml" | fromYaml }}
{{- $name := printf "%s/%s/%s" $.Release.Namespace (include "router.name" $) .name }}
{{- $members := list }}
{{- range list .name .largest }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .) | fromJson }}
{{- $members = append $members (printf "outbound|%v||%s.%s.svc.%s" $backend.port $backend.service $.Release.Namespace $.Values.clusterDomain) }}
{{- end }}
{{- $_ := set $values.cluster "name" $name }}
{{- $_ := set $values.cluster.cluster_type.typed_config "clusters" $members }}
{{- $_ := set $values.route.route "cluster" $name }}
- applyTo: CLUSTER
  match:
    context: GATEWAY
  patch:
    operation: ADD
    value:
      {{- toYaml $values.cluster | nindent 6 }}
- applyTo: HTTP_ROUTE
  match:
    context: GATEWAY
    routeConfiguration:
      vhost:
        route: {name: {{ include "router.routeName" (dict "root" $ "route" .name) }}}
  patch:
    operation: MERGE
    value:
      {{- toYaml $values.route | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}

{{/* gateway.messageTimeout in seconds, the only unit of Envoy and Google. */}}
{{- define "router.timeout" -}}
{{- $number := regexFind "^[0-9]+" .Values.gateway.messageTimeout | int }}
{{- if hasSuffix "ms" .Values.gateway.messageTimeout }}{{ printf "%gs" (divf $number 1000) }}
{{- else if hasSuffix "m" .Values.gateway.messageTimeout }}{{ printf "%ds" (mul $number 60) }}
{{- else }}{{ printf "%ds" $number }}
{{- end }}
{{- end }}

{{/* The limit of a buffered body. It is lower before a picker: Envoy sends it all bytes that arrived
while the router decided as one message, and a Go gRPC server accepts at most 4 MiB. */}}
{{- define "router.bufferLimit" -}}
{{- $limit := int64 .Values.gateway.bufferLimitBytes }}
{{- $limit = eq .Values.gateway.type "inference-extension" | ternary (min $limit 2097152) $limit }}
{{- $read := dig "server" "max_body_bytes" 1048576 .Values.config | int64 }}
{{- if lt $limit $read }}
{{- fail (printf "gateway.bufferLimitBytes: %d; expected at least config.server.max_body_bytes, %d (at most 2097152 for inference-extension)" $limit $read) }}
{{- end }}
{{- $limit }}
{{- end }}

{{/* A route's name, unique among all releases: dict "root" $ "route" NAME. */}}
{{- define "router.routeName" -}}
{{- if eq .root.Values.gateway.type "envoy-gateway" }}
{{- .route | quote }}
{{- else }}
{{- printf "%s.%s.%s" .root.Release.Namespace (include "router.name" .root) .route | quote }}
{{- end }}
{{- end }}

{{/* The common settings of Envoy Gateway's policies for the pools. */}}
{{- define "router.backendTraffic" -}}
loadBalancer:
  type: LeastRequest
circuitBreaker: {maxConnections: 4096, maxParallelRequests: 4096, maxParallelRetries: 1024, maxPendingRequests: 4096}
healthCheck:
  active:
    type: HTTP
    interval: 5s
    timeout: 2s
    unhealthyThreshold: 3
    healthyThreshold: 1
    http:
      path: /health
      expectedStatuses: [200]
{{- end }}

{{/* An HTTPRoute's rules: one for each pool, the last without a header match. */}}
{{- define "router.rules" -}}
{{- $largest := dict }}
{{- range (include "router.pools" . | fromJson).pools }}{{ $_ := set $largest .name .largest }}{{ end }}
{{- range (include "router.routes" . | fromJson).routes }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .pool) | fromJson }}
{{- if ne $.Values.gateway.type "gke" }}
- name: {{ include "router.routeName" (dict "root" $ "route" .name) }}
  matches:
{{- else }}
- matches:
{{- end }}
  - path: {type: PathPrefix, value: {{ $.Values.gateway.pathPrefix }}}
    {{- with .headers }}
    headers:
    {{- range $header, $value := . }}
    - {type: Exact, name: {{ $header }}, value: {{ $value | quote }}}
    {{- end }}
    {{- end }}
  {{- with $.Values.gateway.rewritePrefix }}
  filters:
  - type: URLRewrite
    urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: {{ . }}}}
  {{- end }}
  backendRefs:
  {{- if and (eq $.Values.gateway.type "envoy-gateway") $.Values.gateway.retryOverflow (ne .pool (get $largest .pool)) }}
  - {group: gateway.envoyproxy.io, kind: Backend, name: {{ printf "%s-%s" (include "router.name" $) .pool | quote }}, weight: 1}
  - {group: gateway.envoyproxy.io, kind: Backend, name: {{ printf "%s-%s-fallback" (include "router.name" $) (get $largest .pool) | quote }}, weight: 1}
  {{- else if eq $.Values.gateway.type "inference-extension" }}
  - {group: inference.networking.k8s.io, kind: InferencePool, name: {{ $backend.service | quote }}, weight: 1}
  {{- else }}
  - {group: "", kind: Service, name: {{ $backend.service | quote }}, port: {{ $backend.port }}, weight: 1}
  {{- end }}
  {{- if ne $.Values.gateway.type "gke" }}
  timeouts: {request: 0s}
  {{- end }}
{{- end }}
{{- end }}

{{/* The Gateway and the hosts of an HTTPRoute. */}}
{{- define "router.parents" -}}
{{- include "router.parent" . }}
{{- with .Values.gateway.hosts }}
hostnames: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "router.parent" -}}
parentRefs:
- group: gateway.networking.k8s.io
  kind: Gateway
  name: {{ .Values.gateway.name | quote }}
  {{- with .Values.gateway.parentNamespace }}
  namespace: {{ . | quote }}
  {{- end }}
{{- end }}

{{/* Paths on which vLLM loads and unloads adapters, as in envoy.yaml's route `adapters`. */}}
{{- define "router.adapters" -}}
".*(/|%2[fF])(un)?load_lora_adapter(/|%2[fF])*"
{{- end }}

{{- define "router.forbidden" -}}
'{"error": {"message": "not open to clients", "type": "forbidden", "code": 403}}'
{{- end }}

{{- define "router.httpRoute" -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "router.metadata" (dict "root" $) | nindent 2 }}
spec:
  {{- include "router.parents" . | nindent 2 }}
  rules:
  {{- include "router.rules" . | nindent 2 }}
{{- end }}

{{/* The route that keeps the router's cluster on a gateway with only the clusters of its
routes. */}}
{{- define "router.clusterRoute" -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "router.metadata" (dict "root" $ "name" (printf "%s-cluster" (include "router.name" .))) | nindent 2 }}
spec:
  {{- include "router.parent" . | nindent 2 }}
  hostnames: [{{ include "router.name" . }}.{{ .Release.Namespace }}.invalid]
  rules:
  - matches:
    - path: {type: PathPrefix, value: /}
    backendRefs:
    - {group: "", kind: Service, name: {{ include "router.name" . | quote }}, port: 9002, weight: 1}
{{- end }}

{{/* The DestinationRules of the pools' Services. */}}
{{- define "router.poolRules" -}}
{{- range (include "router.pools" . | fromJson).pools }}
{{- $backend := include "router.backend" (dict "root" $ "pool" .name) | fromJson }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  {{- include "router.metadata" (dict "root" $ "name" (printf "%s-%s" (include "router.name" $) .name)) | nindent 2 }}
spec:
  host: {{ $backend.service }}.{{ $.Release.Namespace }}.svc.{{ $.Values.clusterDomain }}
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool:
      http:
        http1MaxPendingRequests: 4096
        idleTimeout: 4s
{{- end }}
{{- end }}

{{- define "router.destinationRule" -}}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  {{- include "router.metadata" (dict "root" $) | nindent 2 }}
spec:
  host: {{ include "router.host" . }}
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    connectionPool:
      tcp: {connectTimeout: 250ms}
      http: {http1MaxPendingRequests: 8192, http2MaxRequests: 8192}
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 2s
      baseEjectionTime: 10s
      maxEjectionPercent: 100
{{- end }}
