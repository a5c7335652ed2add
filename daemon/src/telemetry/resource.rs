//! Who this daemon is, on everything it exports.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

const SERVICE_NAME: &str = "service.name";
const INSTANCE_ID: &str = "service.instance.id";

/// The resource. `instance_id` is `--service-instance-id`: an empty one is meant; without one, `OTEL_RESOURCE_ATTRIBUTES`
/// decides, and without that a new UUID.
pub fn resource(instance_id: Option<&str>) -> Resource {
    from(Resource::builder().build(), instance_id)
}

fn from(found: Resource, instance_id: Option<&str>) -> Resource {
    let has = |name: &'static str| found.get(&opentelemetry::Key::from_static_str(name));
    let mut ours = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    // What the SDK says when nobody has named the service.
    if has(SERVICE_NAME).is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        ours.push(KeyValue::new(SERVICE_NAME, "lmcached"));
    }
    match instance_id {
        Some(id) => ours.push(KeyValue::new(INSTANCE_ID, id.to_owned())),
        None if has(INSTANCE_ID).is_none() => {
            ours.push(KeyValue::new(INSTANCE_ID, uuid::Uuid::new_v4().to_string()));
        }
        None => {}
    }
    let attributes = found.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes.collect::<Vec<_>>()).with_attributes(ours).build()
}

/// The resource's attributes as text, by name.
pub fn attributes(resource: &Resource) -> Vec<(String, String)> {
    let mut attributes: Vec<_> =
        resource.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    attributes.sort();
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(resource: &Resource, wanted: &str) -> Option<String> {
        attributes(resource).into_iter().find_map(|(name, value)| (name == wanted).then_some(value))
    }

    fn found(pairs: &[(&'static str, &'static str)]) -> Resource {
        let attributes = pairs.iter().map(|(name, value)| KeyValue::new(*name, *value));
        Resource::builder_empty().with_attributes(attributes.collect::<Vec<_>>()).build()
    }

    #[test]
    fn the_instance_is_the_flags_then_the_variables_then_new() {
        let empty = from(found(&[]), Some(""));
        assert_eq!(value(&empty, INSTANCE_ID).as_deref(), Some(""));
        assert_eq!(value(&from(found(&[]), Some("a")), INSTANCE_ID).as_deref(), Some("a"));
        let variable = found(&[(INSTANCE_ID, "v")]);
        assert_eq!(value(&from(variable.clone(), None), INSTANCE_ID).as_deref(), Some("v"));
        assert_eq!(value(&from(variable, Some("")), INSTANCE_ID).as_deref(), Some(""));
        let new = || value(&from(found(&[]), None), INSTANCE_ID).unwrap();
        assert_eq!(uuid::Uuid::parse_str(&new()).unwrap().get_version_num(), 4);
        assert_ne!(new(), new());
    }

    #[test]
    fn a_service_name_of_the_operators_stays() {
        assert_eq!(value(&from(found(&[]), None), SERVICE_NAME).as_deref(), Some("lmcached"));
        let unknown = found(&[(SERVICE_NAME, "unknown_service:lmcached")]);
        assert_eq!(value(&from(unknown, None), SERVICE_NAME).as_deref(), Some("lmcached"));
        let named = found(&[(SERVICE_NAME, "kv")]);
        assert_eq!(value(&from(named, None), SERVICE_NAME).as_deref(), Some("kv"));
    }
}
