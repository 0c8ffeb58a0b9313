// SPDX-License-Identifier: Apache-2.0
//! What a refusal makes of the next stream.

use super::*;

/// What a proxy has refused it may have begun to use: taken back while nobody is there to say so,
/// the form before is sent again.
#[test]
fn what_was_refused_is_sent_again_even_in_the_form_that_was_held_before() {
    let mut world = World::new(1, CALM);
    let name = Root::listener("l0").own();
    let form = |reason: &str| {
        let fail = Resource::Fail(Fail { reason: reason.into(), origin: None });
        Arc::new(Entry::new(Arc::new(fail)).unwrap())
    };
    let (first, second) = (form("first"), form("second"));
    let deliver = |world: &mut World, generation: u64, form: &Arc<Entry>| {
        world.view.resources.insert(name.clone(), form.clone());
        world.view.generation = generation;
        if !world.connected {
            world.connect();
        }
        world.offer();
        world.carry_to_server();
        world.carry_to_client();
        let upserts = world.delivered.take().map(|transaction| transaction.upserts);
        upserts.into_iter().flatten().map(|upsert| upsert.version).collect::<Vec<_>>()
    };
    let answer = |world: &mut World, generation: u64, rejected: Vec<Rejected>| {
        let answer = world.client.applied(Applied { generation, rejected });
        world.client_output(answer);
        world.carry_to_server();
    };
    assert_eq!(deliver(&mut world, 1, &first), [first.version]);
    answer(&mut world, 1, Vec::new());
    assert_eq!(deliver(&mut world, 2, &second), [second.version]);
    answer(&mut world, 2, vec![Rejected::new(name.to_string(), "one section of it is wrong")]);
    world.disconnect();
    assert_eq!(deliver(&mut world, 3, &first), [first.version]);
    answer(&mut world, 3, Vec::new());
    world.disconnect();
    assert_eq!(deliver(&mut world, 4, &first), [], "it is held");
}
